"""Sweeps on real workers: the external trainer answers from a law, so hundreds of points take seconds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from sweep_runs import ISOFLOP, UNSPECIFIED, Command, finals, smoke, states, until

from sweeps.dispatch.jobs import live_jobs
from sweeps.paths import SweepFolder


def test_run_plans_trains_fits_and_reports(isoflop: Command, folder: SweepFolder) -> None:
    command = [*ISOFLOP, "run", *smoke(folder)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert said.returncode == 0, said.stderr
    assert "Exponents with 95% intervals" in said.stdout
    assert all(name in said.stdout for name in ("1 envelope", "2 isoFLOP", "3 parametric", "total", "non-embedding"))
    report, figures, fit = (Path(line) for line in said.stdout.split()[-3:])
    assert report.name == "report.html"
    assert report.stat().st_size > 100_000
    assert {path.suffix for path in figures.iterdir()} == {".png", ".svg", ".pdf"}
    assert json.loads(fit.read_text())["rows"]["used"] == 12
    assert all(len(records) == 1 for records in finals(folder).values())
    again = isoflop("run", *smoke(folder))
    assert again.code == 0
    assert "submitted 0 runs in 0 jobs" in again.err
    assert all(len(records) == 1 for records in finals(folder).values())


def test_a_sweep_is_extended_by_one_budget(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder))
    before = {run.run_id: run.config_path.stat().st_mtime_ns for run in folder.runs()}
    said = isoflop("run", *smoke(folder, "sweep.budgets=[1e10,2e10,4e10,8e10]"))
    assert "submitted 4 runs" in said.err
    assert len(folder.runs()) == 16
    assert {run.run_id: run.config_path.stat().st_mtime_ns for run in folder.runs() if run.run_id in before} == before


def test_refused_points_are_told_by_every_verb_that_plans(isoflop: Command, folder: SweepFolder) -> None:
    for verb in ("plan", "submit", "run"):
        said = isoflop(verb, *smoke(folder, "optim.min_steps=100"))
        assert "refused: 24.7k parameters at 1e10 FLOPs: 77 updates are fewer than optim.min_steps=100" in said.err


def test_points_that_left_the_config_are_reported_and_kept(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder))
    said = isoflop("submit", *smoke(folder, "sweep.budgets=[1e10,2e10]"), "format=json")
    assert said.json["submitted"] == []
    assert len(said.json["left"]) == 4
    assert "4 runs on disk have left the config and are kept" in said.err
    assert len(folder.runs()) == 12
    fit = isoflop("fit", *smoke(folder), "format=json").json
    assert fit["rows"]["used"] == 8
    assert [out["reason"] for out in fit["rows"]["excluded"]] == ["its point has left the sweep's config"] * 4


def test_submit_returns_and_is_safe_to_repeat(isoflop: Command, folder: SweepFolder) -> None:
    slow = 'trainer.command="sleep 60"'
    first = isoflop("submit", *smoke(folder, slow), "format=json").json
    assert len(first["submitted"]) == 12
    assert first["before"]["planned"] == 12
    second = isoflop("submit", *smoke(folder, slow), "format=json").json
    assert second["submitted"] == []
    until(lambda: sum(p["state"] == "running" for p in states(isoflop, folder, slow)) > 0)
    shown = states(isoflop, folder, slow)
    assert {p["state"] for p in shown} == {"running", "queued"}
    cancelled = isoflop("cancel", *smoke(folder, slow))
    assert len(cancelled.out.split()) == 12
    until(lambda: not live_jobs(folder))
    assert {(p["state"], p["cause"]) for p in states(isoflop, folder, slow)} == {("planned", "cancelled")}


def test_longest_runs_go_first(isoflop: Command, folder: SweepFolder) -> None:
    submitted = isoflop("submit", *smoke(folder), "format=json").json["submitted"]
    hours = {p["run_id"]: p["hours"] for p in json.loads(folder.plan_path.read_text())["points"]}
    assert [hours[run] for run in submitted] == sorted(hours.values(), reverse=True)
    until(lambda: len(finals(folder)) == 12)


def test_two_submits_at_once_train_nothing_twice(folder: SweepFolder) -> None:
    twins = [subprocess.Popen([*ISOFLOP, "submit", *smoke(folder)], stderr=subprocess.PIPE) for _ in range(2)]
    assert [twin.communicate() and twin.returncode for twin in twins] == [0, 0]
    until(lambda: len(finals(folder)) == 12 and not live_jobs(folder))
    assert all(len(records) == 1 for records in finals(folder).values())
    assert all(len(run.attempts()) == 1 for run in folder.runs())


def test_status_reads_and_never_writes(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder))
    before = sorted((str(p), p.stat().st_mtime_ns) for p in folder.root.rglob("*"))
    assert isoflop("status", *smoke(folder)).code == 0
    assert isoflop("status", *smoke(folder), "format=json").code == 0
    assert sorted((str(p), p.stat().st_mtime_ns) for p in folder.root.rglob("*")) == before


def test_a_diverged_point_is_an_outcome_not_a_failure(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder))
    run = folder.runs()[0]
    record = json.loads((run.path / "points.jsonl").read_text()) | {"verdict": "diverged", "loss": None}
    (run.path / "points.jsonl").write_text(json.dumps(record) + "\n")
    said = isoflop("run", *smoke(folder))
    assert said.code == 0
    assert f"diverged, and left out of the fit: {run.run_id}" in said.err
    excluded = json.loads((folder.fit / "fit.json").read_text())["rows"]["excluded"]
    assert [out["row"] for out in excluded] == [run.run_id]


def test_limits_stop_a_submit_until_confirmed(isoflop: Command, folder: SweepFolder) -> None:
    said = isoflop("submit", *smoke(folder, "limits.device_hours=1e-9"))
    assert said.code == 2
    assert "limits.device_hours=1e-09, but the 12 points to submit are planned at" in said.sentence
    assert not folder.runs(), "nothing is half-submitted"
    priced = isoflop("submit", *smoke(folder, "device.price_per_hour=1000", "limits.price=0.01"))
    assert "limits.price=0.01" in priced.sentence
    assert isoflop("submit", *smoke(folder, "limits.device_hours=1e-9", "confirm=true")).code == 0
    until(lambda: len(finals(folder)) == 12)


def test_unspecified_data_cannot_be_trained_on(isoflop: Command, tmp_path: Path) -> None:
    said = isoflop("submit", "sweep=smoke", f"root={tmp_path}", *UNSPECIFIED)
    assert said.code == 2
    assert "data.source=unspecified has no tokens to train on" in said.sentence


def test_a_point_too_large_for_its_device_is_refused(isoflop: Command, folder: SweepFolder) -> None:
    said = isoflop("submit", *smoke(folder, "trainer.command=null", "data=zipf_facts", "device.memory_gb=1e-4"))
    assert said.code == 2
    assert "device.memory_gb=0.0001 cannot hold c1e10-n3.1k" in said.sentence
    alone = isoflop(
        "train", *smoke(folder, "trainer.command=null", "data=zipf_facts", "device.memory_gb=1e-4"), "point=c1e10-n3"
    )
    assert alone.code == 2
    assert "device.memory_gb=0.0001 cannot hold c1e10-n3.1k" in alone.sentence
    assert not folder.runs()


def test_a_finished_point_is_not_trained_again(isoflop: Command, folder: SweepFolder) -> None:
    for _ in range(2):
        assert isoflop("train", *smoke(folder), "point=c1e10-n3").code == 0
    (run,) = folder.runs()
    assert len(run.attempts()) == 1
    assert len(finals(folder)[run.run_id]) == 1


def test_hundreds_of_points_take_seconds(isoflop: Command, folder: SweepFolder, whole: bool) -> None:
    seeds = list(range(25 if whole else 5))
    said = isoflop("run", *smoke(folder, f"sweep.seeds={seeds}".replace(" ", ""), "fit.replicates=50"))
    assert said.code == 0
    assert len(finals(folder)) == 12 * len(seeds)


def test_train_runs_one_point_here(isoflop: Command, folder: SweepFolder) -> None:
    said = isoflop("train", *smoke(folder), "point=c1e10-n3", "format=json")
    assert said.code == 0
    (point,) = said.json["points"]
    assert point["state"] == "done"
    assert len(folder.runs()) == 1
    vague = isoflop("train", *smoke(folder), "point=c1e10")
    assert vague.code == 2
    assert "point=c1e10 fits 4 points; name one, such as c1e10-n3.1k" in vague.sentence
    wrong = isoflop("train", *smoke(folder), "point=z")
    assert "point=z begins no point's id" in wrong.sentence


def test_clean_frees_checkpoints_of_done_points(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder, "trainer.command=null", "data=zipf_facts", "sweep.budgets=[1e10]", "sweep.sizes=2"))
    assert all(list(run.checkpoints.iterdir()) for run in folder.runs())
    losses = {run: records[0]["loss"] for run, records in finals(folder).items()}
    isoflop("clean", *smoke(folder, "trainer.keep=last"))
    assert all(len(list(run.checkpoints.iterdir())) == 1 for run in folder.runs())
    said = isoflop("clean", *smoke(folder, "trainer.keep=none"))
    assert "in 2 ended runs (trainer.keep=none)" in said.err
    assert not any(run.checkpoints.exists() for run in folder.runs())
    assert {run: records[0]["loss"] for run, records in finals(folder).items()} == losses

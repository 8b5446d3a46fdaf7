"""Sweeps on real workers: the external trainer answers from a law, so hundreds of points take seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LAW_TRAINER, Answer

from sweeps.jobs import live_jobs
from sweeps.paths import SweepFolder
from trainer.lock import holder

Command = Callable[..., Answer]
ISOFLOP = [sys.executable, "-m", "sweeps.cli"]
FIXED = ["fit.replicates=50", "cluster.workers=2"]
UNSPECIFIED = ["data=unspecified", "data.sequence=96", "data.vocabulary=256"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SweepFolder]:
    """The smoke sweep's folder; whatever still works there afterwards is stopped."""
    sweep = SweepFolder.of(str(tmp_path), "smoke")
    yield sweep
    for run in [run.path for run in sweep.runs()] + list(live_jobs(sweep)):
        who = holder(run)
        if who is not None:
            os.kill(who.pid, signal.SIGKILL)


def smoke(folder: SweepFolder, *overrides: str) -> list[str]:
    """The smoke sweep with the law's trainer."""
    return ["sweep=smoke", f"root={folder.root}", *UNSPECIFIED, LAW_TRAINER, *FIXED, *overrides]


def gated(folder: SweepFolder) -> tuple[str, Path]:
    """A trainer that waits until the path exists before it answers, as an override, and the path."""
    script, gate = folder.root / "gated.sh", folder.root / "gate"
    script.write_text(
        f'while [ ! -e {gate} ]; do sleep 0.05; done; exec {sys.executable} -m trainer.examples.law_trainer "$1"\n'
    )
    return f'trainer.command="sh {script} {{folder}}"', gate


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def states(isoflop: Command, folder: SweepFolder, *overrides: str) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = isoflop("status", *smoke(folder, *overrides), "format=json").json["points"]
    return points


def finals(folder: SweepFolder) -> dict[str, list[dict[str, Any]]]:
    """Every final record on disk, by run."""
    return {
        run.run_id: [json.loads(line) for line in (run.path / "points.jsonl").read_text().splitlines()]
        for run in folder.runs()
        if (run.path / "points.jsonl").exists()
    }


def test_run_plans_trains_fits_and_reports(isoflop: Command, folder: SweepFolder) -> None:
    said = isoflop("run", *smoke(folder))
    assert said.code == 0, said.err
    assert "Exponents with 95% intervals" in said.out
    assert all(name in said.out for name in ("1 envelope", "2 isoFLOP", "3 parametric", "total", "non-embedding"))
    report, figures, fit = (Path(line) for line in said.out.split()[-3:])
    assert report.name == "report.html"
    assert report.stat().st_size > 100_000
    assert {path.suffix for path in figures.iterdir()} == {".png", ".svg"}
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


def test_a_failing_trainer_is_a_failure_with_its_cause(isoflop: Command, folder: SweepFolder) -> None:
    broken = """trainer.command='sh -c "echo no such GPU; exit 3"'"""
    said = isoflop("run", *smoke(folder, broken, "sweep.budgets=[1e10]"))
    assert said.code == 1
    assert "no fit: " in said.err, "nothing was measured, so there is nothing to fit"
    shown = states(isoflop, folder)
    assert {p["state"] for p in shown} == {"failed"}
    assert shown[0]["cause"] == "trainer.command left no final record (exit code 3), and said last: no such GPU"
    assert isoflop("status", *smoke(folder)).code == 1
    assert isoflop("submit", *smoke(folder, broken, "sweep.budgets=[1e10]"), "format=json").json["submitted"] == []
    retried = isoflop("submit", *smoke(folder, broken, "sweep.budgets=[1e10]", "retry=all"), "format=json").json
    assert len(retried["submitted"]) == 4
    until(lambda: not live_jobs(folder))


def test_one_failure_spares_the_others(isoflop: Command, folder: SweepFolder) -> None:
    script = folder.root / "picky.sh"
    script.write_text(
        f'case "$1" in *n7.0k*) exit 1;; esac; exec {sys.executable} -m trainer.examples.law_trainer "$1"\n'
    )
    said = isoflop("run", *smoke(folder, f'trainer.command="sh {script} {{folder}}"'))
    assert said.code == 1
    assert "failed: c1e10-n7.0k" in said.err and said.err.count("-n7.0k-") == 3
    assert "Exponents" in said.out
    fit = json.loads((folder.fit / "fit.json").read_text())
    assert fit["rows"]["used"] == 9
    assert all("failed" in out["reason"] for out in fit["rows"]["excluded"])


def test_a_trainer_that_cannot_start_is_named(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder, 'trainer.command="/no/such/program {folder}"', "sweep.budgets=[1e10]"))
    causes = {p["cause"] for p in states(isoflop, folder)}
    assert len(causes) == 1
    assert "trainer.command='/no/such/program {folder}' cannot start" in causes.pop()


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


def test_an_edited_config_is_refused_and_untouched(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder))
    run = folder.runs()[0]
    (run.path / "points.jsonl").unlink()
    edited = run.config_path.read_text().replace("seed: 0", "seed: 1")
    run.config_path.write_text(edited)
    said = isoflop("submit", *smoke(folder))
    assert said.code == 2
    assert "not the folder's name, so it was edited or moved" in said.sentence
    assert run.config_path.read_text() == edited


def test_torn_lines_spoil_only_themselves(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder))
    whole = isoflop("fit", *smoke(folder), "format=json").json
    for run in folder.runs():
        with (run.path / "metrics.jsonl").open("a") as metrics, (run.path / "points.jsonl").open("a") as points:
            metrics.write('{"step": 99999, "tok')
            points.write('{"point_id": "')
    assert isoflop("fit", *smoke(folder), "format=json").json == whole


def test_odd_lines_of_others_are_passed_over(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder))
    run = folder.runs()[0]
    (run.path / "points.jsonl").unlink()
    with (run.path / "metrics.jsonl").open("a") as metrics, (run.path / "attempts.jsonl").open("a") as attempts:
        metrics.write('{"step": 5, "tokens": null}\n{"step": "x"}\n[]\n')
        attempts.write('{"attempt": 7, "end": 5, "why": "done"}\n{"attempt": null}\n')
    assert isoflop("status", *smoke(folder)).code == 0
    assert isoflop("run", *smoke(folder)).code == 0


@pytest.mark.parametrize(
    ("record", "flaw"),
    [
        ({"verdict": "done", "tokens": 1}, "tokens=1 do not reach horizon="),
        ({"verdict": "done", "loss": "low"}, "loss='low' is no finite number"),
        ({"verdict": "fine"}, "verdict='fine' is none of done, diverged and failed: <cause>"),
        ({"schema": None}, "schema is missing"),
    ],
)
def test_an_invalid_final_record_is_told_from_none(
    isoflop: Command, folder: SweepFolder, record: dict[str, Any], flaw: str
) -> None:
    isoflop("train", *smoke(folder), "point=c1e10-n3")
    (run,) = folder.runs()
    good = json.loads((run.path / "points.jsonl").read_text())
    (run.path / "points.jsonl").write_text(json.dumps(good | record) + "\n")
    assert run.points() == {}
    (found,) = run.flaws()
    assert flaw in found


def test_modules_in_the_users_folder_shadow_nothing(folder: SweepFolder, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "trainer").mkdir(parents=True)
    for name in ("random.py", "trainer/__init__.py", "submitit.py"):
        (here / name).write_text("raise SystemExit('shadowed')\n")
    own = smoke(folder, "trainer.command=null", "data=zipf_facts", "sweep.budgets=[1e10]", "sweep.sizes=1")
    command = [str(Path(sys.executable).parent / "isoflop"), "run", *own]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=here, check=False)
    assert said.returncode == 0, said.stderr


def test_a_worker_killed_outright_is_replaced(isoflop: Command, folder: SweepFolder) -> None:
    """The next reconcile takes its runs up; a trainer that outlived it is ended first."""
    trainer, gate = gated(folder)
    slow = smoke(folder, trainer, "sweep.budgets=[1e10]", "sweep.sizes=2")
    isoflop("submit", *slow)
    until(lambda: len(list(folder.path.glob("*/trainer.json"))) == 2)
    for job in live_jobs(folder):
        who = holder(job)
        if who is not None:
            os.kill(who.pid, signal.SIGKILL)
    threading.Timer(6, gate.touch).start()  # the orphans wait at the gate while their runs are taken up
    said = isoflop("run", *slow)
    assert said.code == 0, said.err
    assert all(len(records) == 1 for records in finals(folder).values()), "no orphan wrote beside the new trainer"
    assert {p["state"] for p in states(isoflop, folder)} == {"done"}
    lost = [a for run in folder.runs() for a in run.attempts() if str(a.get("why")).startswith("lost")]
    assert lost, "the ledger says what happened"


def test_points_that_only_vanish_end_as_failed(isoflop: Command, folder: SweepFolder) -> None:
    """A run that kills its worker, as the kernel does when memory runs out, is given up in the end."""
    deadly = """trainer.command='sh -c "kill -9 $PPID"'"""
    arguments = smoke(folder, deadly, "sweep.budgets=[1e10]", "sweep.sizes=1", "limits.lost_attempts=2")
    said = isoflop("run", *arguments)
    assert said.code == 1
    (point,) = states(isoflop, folder, "limits.lost_attempts=2")
    assert point["state"] == "failed"
    assert point["cause"] == "lost 2 times at step 0 without a word (out of memory?)"
    assert point["attempts"] == 2
    retried = isoflop("submit", *arguments, "retry=all", "format=json").json
    assert len(retried["submitted"]) == 1
    until(lambda: not live_jobs(folder))


def test_ctrl_c_stops_the_workers_and_the_next_run_continues(folder: SweepFolder) -> None:
    script = folder.root / "slow.sh"
    script.write_text(f'sleep 0.3; exec {sys.executable} -m trainer.examples.law_trainer "$1"\n')
    command = [*ISOFLOP, "run", *smoke(folder, f'trainer.command="sh {script} {{folder}}"')]
    first = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background shells ignore it
    )
    until(lambda: len(finals(folder)) >= 1)
    os.killpg(first.pid, signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130
    assert b"continues where it stopped" in err
    assert b"Traceback" not in err
    assert not live_jobs(folder)
    assert len(finals(folder)) < 12
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 0, second.stderr
    assert len(finals(folder)) == 12
    assert all(len(records) == 1 for records in finals(folder).values())


def test_workers_outlive_the_terminal(folder: SweepFolder) -> None:
    trainer, gate = gated(folder)
    shell = ["bash", "-c", '"$@"; kill -HUP 0; kill -INT 0', "shell", *ISOFLOP, "submit", *smoke(folder, trainer)]
    terminal = subprocess.Popen(shell, stderr=subprocess.PIPE, start_new_session=True)
    terminal.communicate(timeout=60)  # returns although the workers live: they do not hold our pipe
    assert live_jobs(folder)
    gate.touch()
    until(lambda: len(finals(folder)) == 12)


def test_a_lost_worker_is_replaced_while_another_works(isoflop: Command, folder: SweepFolder) -> None:
    trainer, gate = gated(folder)
    isoflop("submit", *smoke(folder, trainer))
    until(lambda: len(list(folder.path.glob("*/trainer.json"))) == 2)
    first, second = live_jobs(folder)
    lost = holder(first)
    assert lost is not None
    os.kill(lost.pid, signal.SIGKILL)
    until(lambda: set(live_jobs(folder)) == {second})
    again = isoflop("submit", *smoke(folder, trainer), "format=json").json
    assert again["submitted"] == [], "the other worker still has every run on its list"
    assert len(again["jobs"]) == 1
    gate.touch()
    until(lambda: len(finals(folder)) == 12)


def test_run_replaces_lost_workers_but_not_what_was_cancelled(isoflop: Command, folder: SweepFolder) -> None:
    trainer, gate = gated(folder)
    command = subprocess.Popen(
        [*ISOFLOP, "run", *smoke(folder, trainer)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until(lambda: len(list(folder.path.glob("*/trainer.json"))) == 2)
    isoflop("cancel", *smoke(folder), "point=c4e10")
    until(lambda: sum(p["cause"] == "cancelled" for p in states(isoflop, folder)) == 4)
    for job in live_jobs(folder):
        who = holder(job)
        if who is not None:
            os.kill(who.pid, signal.SIGKILL)
    gate.touch()
    _, err = command.communicate(timeout=120)
    assert command.returncode == 1, "what has no result is no success"
    assert b"4 points were cancelled and have no result" in err
    shown = states(isoflop, folder)
    assert {p["state"] for p in shown if p["budget"] != 4e10} == {"done"}
    assert {p["cause"] for p in shown if p["budget"] == 4e10} == {"cancelled"}
    again = isoflop("run", *smoke(folder, trainer))
    assert again.code == 0
    assert {p["state"] for p in states(isoflop, folder)} == {"done"}


def test_a_finished_point_is_not_trained_again(isoflop: Command, folder: SweepFolder) -> None:
    for _ in range(2):
        assert isoflop("train", *smoke(folder), "point=c1e10-n3").code == 0
    (run,) = folder.runs()
    assert len(run.attempts()) == 1
    assert len(finals(folder)[run.run_id]) == 1


def test_progress_between_kills_is_no_loop(isoflop: Command, folder: SweepFolder) -> None:
    """Attempts that vanish, each further on than the one before, do not make a point fail."""
    isoflop("train", *smoke(folder), "point=c1e10-n3")
    (run,) = folder.runs()
    (run.path / "points.jsonl").unlink()
    for step in range(6):
        run.start_attempt("killed", step * 10)
    (point,) = [p for p in states(isoflop, folder) if p["run_id"] == run.run_id]
    assert point["state"] == "planned"
    for _ in range(5):
        run.start_attempt("killed", 50)
    (point,) = [p for p in states(isoflop, folder) if p["run_id"] == run.run_id]
    assert (point["state"], point["attempts"]) == ("failed", 12)


def test_hundreds_of_points_take_seconds(isoflop: Command, folder: SweepFolder, whole: bool) -> None:
    seeds = list(range(25 if whole else 5))
    said = isoflop("run", *smoke(folder, f"sweep.seeds={seeds}".replace(" ", ""), "fit.replicates=50"))
    assert said.code == 0
    assert len(finals(folder)) == 12 * len(seeds)


def test_workers_that_cannot_work_are_a_machine_fault(
    isoflop: Command, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(folder.root / "nowhere"))
    shadow = folder.root / "nowhere" / "sweeps"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise RuntimeError('this worker is broken')\n")
    said = isoflop("run", *smoke(folder))
    assert said.code == 1
    assert "workers leave without training; the last one said: " in said.sentence
    assert "this worker is broken" in said.sentence


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

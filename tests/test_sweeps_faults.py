"""Sweeps whose trainers, workers, terminals and files fail: what is lost, what is told, what goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sweep_runs import ISOFLOP, Command, finals, gated, smoke, states, until

from sweeps.dispatch.jobs import live_jobs
from sweeps.paths import SweepFolder
from trainer.lock import holder


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

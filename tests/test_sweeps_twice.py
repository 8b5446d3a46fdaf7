"""Nothing is submitted twice, and nothing is lost, where SLURM and users do what one would rather they did not."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_slurm import Fake
from sweep_runs import ON_SLURM, Command, shown, smoke, submit

from sweeps.dispatch import slurm
from sweeps.dispatch.canary import may_follow
from sweeps.dispatch.jobs import open_jobs, tasks, write_job
from sweeps.dispatch.slurm import View
from sweeps.paths import SweepFolder


def test_what_slurm_has_queued_gets_no_worker_here(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder)
    said = isoflop("submit", *smoke(folder, "sweep.budgets=[1e10]"))
    assert "submitted 0 runs in 0 jobs" in said.err
    assert {state for state, _ in shown(isoflop, folder).values()} == {"queued"}


def test_a_cancelled_point_whose_task_waits_is_only_asked_for_again(
    isoflop: Command, folder: SweepFolder, fake: Fake
) -> None:
    submit(isoflop, folder, "cluster.pack_hours=9")
    isoflop("cancel", *smoke(folder, *ON_SLURM), "point=c1e10-n3")
    assert ("planned", "cancelled") in shown(isoflop, folder).values()
    assert submit(isoflop, folder)["submitted"] == []
    assert {state for state, _ in shown(isoflop, folder).values()} == {"queued"}
    assert len(fake.scripts()) == 1


def test_a_look_at_the_queue_while_sbatch_works_tells_nothing_of_its_job(
    isoflop: Command, folder: SweepFolder, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[float] = []
    sbatch = slurm.submit

    def submit_while_somebody_looks(script: str) -> str:
        looked.append(time.time())
        return sbatch(script)

    monkeypatch.setattr(slurm, "submit", submit_while_somebody_looks)
    submit(isoflop, folder)
    ((path, job),) = open_jobs(folder).items()
    early = View(taken=looked[0])
    assert all(task.lives for task in tasks({path: job}, early)), "its id came after the look"
    intent = replace(job, job_id=None)
    assert all(task.lives for task in tasks({path: intent}, View(taken=job.submitted + 30)))
    assert not any(task.lives for task in tasks({path: intent}, View(taken=job.submitted + 90)))


def test_a_record_that_cannot_be_read_stops_a_submit(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder)
    ((path, _),) = open_jobs(folder).items()
    (path / "job.json").write_text('{"of": "another version"}')
    said = isoflop("submit", *smoke(folder, *ON_SLURM))
    assert said.code == 1 and "job.json cannot be read" in said.err and len(fake.scripts()) == 1


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("job-name=x", "isoflop's own to set"),
        ("array=0-3", "isoflop's own to set"),
        ("dependency=singleton", "isoflop's own to set"),
        ("time=43200", "quote it"),
    ],
)
def test_options_that_would_undo_it_are_refused(
    isoflop: Command, folder: SweepFolder, fake: Fake, option: str, sentence: str
) -> None:
    said = isoflop("submit", *smoke(folder, *ON_SLURM, f"+cluster.sbatch.{option}"))
    assert said.code == 2 and sentence in said.err and not fake.scripts()


def test_memory_per_cpu_takes_the_place_of_memory(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder, "+cluster.sbatch.mem-per-cpu=4G")
    (script,) = fake.scripts()
    assert "--mem-per-cpu=4G" in script and "--mem=" not in script


def test_what_the_users_shell_says_to_slurms_programs_is_not_handed_on() -> None:
    shell = {"SQUEUE_PARTITION": "short", "SINFO_PARTITION": "short", "SLURM_CONF": "/etc/slurm.conf", "HOME": "/root"}
    assert set(slurm.environment(shell)) == {"SLURM_CONF", "HOME"}


def test_an_answer_that_was_lost_is_no_refusal(tmp_path: Path) -> None:
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\necho 'sbatch: error: Zero Bytes were transmitted or received' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(slurm.Silent):
        slurm.ask(str(program))


def test_a_task_held_for_its_reservation_waits(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder)
    for task in fake.all_tasks():
        fake.task(task, "RESV_DEL_HOLD", "ReservationDeleted")
    assert submit(isoflop, folder)["submitted"] == []


def test_a_canary_counts_among_the_tasks_that_may_be_queued(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder, "cluster.canary=true", "cluster.max_submit=3")
    assert len(fake.all_tasks()) <= 3
    assert len(fake.scripts()) == 2


def test_a_canary_that_was_taken_back_lets_nothing_start(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder, "cluster.canary=true")
    ((canary, job),) = ((path, job) for path, job in open_jobs(folder).items() if job.canary is None)
    assert not may_follow(canary, job)
    isoflop("train", *smoke(folder, *ON_SLURM), f"point={job.runs[0]}")
    assert may_follow(canary, job)


def test_the_ceiling_counts_arrays_whose_submitter_died(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder, "cluster.max_gpus=2")
    ((path, job),) = open_jobs(folder).items()
    write_job(path, replace(job, job_id=None))
    submit(isoflop, folder, "cluster.max_gpus=2", "sweep.budgets=[1e10,2e10]")
    assert f"--dependency=afterany:{job.job_id}" in fake.scripts()[-1]


def test_memory_doubles_where_it_ran_out(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder)
    (first,) = (line for line in fake.scripts()[0].splitlines() if "--mem=" in line)
    ((path, job),) = open_jobs(folder).items()
    for number, run_id in enumerate(job.runs):
        folder.run(run_id).start_attempt(f"{path.name}/{number}", 0)
        fake.task(f"{job.job_id}_{number}", "OUT_OF_MEMORY")
    assert {state for state, _ in shown(isoflop, folder).values()} == {"failed"}
    submit(isoflop, folder, "retry=oom")
    (again,) = (line for line in fake.scripts()[-1].splitlines() if "--mem=" in line)
    assert int(again.partition("=")[2][:-1]) == 2 * int(first.partition("=")[2][:-1])
    for number in range(4):
        fake.task(f"{int(str(job.job_id)) + 1}_{number}", "NODE_FAIL")
    submit(isoflop, folder)
    assert again in fake.scripts()[-1], "and stays so"


def test_one_damaged_config_leaves_the_others_to_be_cleaned(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("run", *smoke(folder, "sweep.budgets=[1e10]"))
    damaged, *rest = folder.runs()
    damaged.config_path.write_text("recipe: 3\n")
    for run in (damaged, *rest):
        run.checkpoints.mkdir(exist_ok=True)
        (run.checkpoints / "mine").write_bytes(os.urandom(100))
    said = isoflop("clean", *smoke(folder), "trainer.keep=none")
    assert said.code == 1 and "left as it is" in said.err
    assert (damaged.checkpoints / "mine").exists() and not any((run.checkpoints / "mine").exists() for run in rest)

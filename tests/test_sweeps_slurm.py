"""Submitting to SLURM, at the boundary of its commands: what is asked, what is told, what is never asked twice."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_slurm import Fake
from sweep_runs import ON_SLURM, Command, shown, smoke, submit

from sweeps import run
from sweeps.dispatch import life, slurm
from sweeps.dispatch.jobs import open_jobs, queue_name, read_job, write_job
from sweeps.paths import SweepFolder
from trainer.runfolder import RunFolder


def start_and_vanish(folder: SweepFolder, run_id: str, task: str) -> RunFolder:
    """An attempt in a task that was killed outright."""
    (job,) = open_jobs(folder)
    run = folder.run(run_id)
    run.start_attempt(f"{job.name}/{task}", 0)
    return run


def test_one_array_with_what_each_task_needs(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    more = ["cluster.account=lab", "cluster.qos=low", "cluster.setup=[echo hello]", "cluster.modules=[cuda/12]"]
    more += ["cluster.container=run in box", "cluster.sbatch.nice=7", "cluster.sbatch.gpus-per-node=null"]
    more += ["device=h100", "cluster.cpus_per_device=12", "cluster.memory_gb=90.5", "cluster.gpu_type=h100"]
    answer = submit(isoflop, folder, *more)
    assert len(answer["submitted"]) == 4
    (script,) = fake.scripts()
    for line in ("--account=lab", "--qos=low", "--nice=7", "--array=0-3%4", "--nodes=1", "--cpus-per-task=12"):
        assert f"#SBATCH {line}\n" in script
    for line in ("--mem=91G", "--time=10", "--signal=USR2@120", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {line}\n" in script
    assert "gpus-per-node" not in script, "null leaves an option of ours out"
    assert "wckey" not in script
    assert script.index("echo hello") < script.index("module load cuda/12") < script.index("srun ")
    (started,) = [line for line in script.splitlines() if line.startswith("srun ")]
    assert "--cpus-per-task=12" in started, "srun does not take it from sbatch"
    assert " run in box " in started
    assert isoflop("submit", *smoke(folder, *ON_SLURM, *more, "cluster.partition=main")).code == 0


def test_gpus_are_asked_for(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder, "device=h100", "cluster.gpu_type=h100")
    assert "#SBATCH --gpus-per-node=h100:1\n" in fake.scripts()[0]


def test_submit_is_safe_to_repeat_and_asks_once(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder)
    fake.forget_calls()
    assert submit(isoflop, folder)["submitted"] == []
    assert len(fake.calls("squeue")) == 1
    assert not fake.calls("sbatch") and not fake.calls("sacct")
    fake.forget_calls()
    assert set(shown(isoflop, folder).values()) == {("queued", "waits: Priority")}
    assert len(fake.calls("squeue")) == 1
    assert not fake.calls("sacct")


def test_the_submitters_slurm_variables_are_not_handed_on(
    isoflop: Command, folder: SweepFolder, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CPU_BIND", "SLURM_JOB_ID", "SBATCH_PARTITION", "SRUN_CPUS_PER_TASK", "SLURM_CONF"):
        monkeypatch.setenv(name, "x")
    submit(isoflop, folder)
    assert [name for name in fake.environment() if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))] == ["SLURM_CONF"]


def test_a_submitter_that_died_after_sbatch_is_found_again(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder)
    ((path, job),) = open_jobs(folder).items()
    assert job.job_id == "100"
    write_job(path, replace(job, job_id=None, submitted=0.0))
    assert submit(isoflop, folder)["submitted"] == []
    found = read_job(path)
    assert found is not None and found.job_id == "100"


def test_an_intent_that_sbatch_never_saw_is_dropped(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder)
    ((path, job),) = open_jobs(folder).items()
    fake.change(jobs={})
    write_job(path, replace(job, job_id=None))
    assert submit(isoflop, folder)["submitted"] == [], "sbatch may still be on its way"
    write_job(path, replace(job, job_id=None, submitted=job.submitted - 100))
    assert len(submit(isoflop, folder)["submitted"]) == 4
    assert path not in open_jobs(folder)


def test_a_silent_slurm_stops_submit_and_not_status(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder)
    fake.change(fail={"squeue": "Unable to contact slurm controller (connect failure)"})
    said = isoflop("submit", *smoke(folder, *ON_SLURM))
    assert said.code == 1
    assert "SLURM does not answer (squeue: Unable to contact slurm controller" in said.sentence
    told = isoflop("status", *smoke(folder, *ON_SLURM), "format=json")
    assert told.code == 0
    assert {p["state"] for p in told.json["points"]} == {"queued"}
    assert "Unable to contact" in told.json["stale"]
    assert "SLURM does not answer" in told.err
    assert isoflop("cancel", *smoke(folder, *ON_SLURM)).code == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["cluster.partition=nope"], "cluster.partition=nope: there is no partition nope; choose from main, short."),
        (["cluster.max_hours=30"], "cluster.max_hours=30 is over the 24 hours that partition main allows"),
        (["device=h100", "cluster.devices_per_node=9"], "the nodes of partition main have 8 GPUs"),
        (["device=h100", "cluster.partition=short"], "the nodes of partition short have no GPUs"),
        (["cluster.max_submit=0"], "cluster.max_submit=0 must be null or 1 or more"),
        (
            ["device.memory_gb=0.03", "trainer.way=eager", "cluster.max_gpus=1"],
            "but a point needs 2 devices at once",
        ),
        (["cluster.cpus_per_device=65"], "a point needs 65 CPUs on a node, but the partition has 64 at most; lower"),
        (["cluster.memory_gb=251"], "a point needs 251 GB of memory on a node, but the partition has 250 at most"),
        (["device.memory_gb=0.0001"], "nodes, but the partition has 4 at most; lower sweep.sizes"),
        (["cluster.sbatch.time=2-00:00:00"], "cluster.sbatch.time=2-00:00:00 is over the 24 hours that partition main"),
        (["cluster.sbatch.partition=nope"], "cluster.partition=nope: there is no partition nope"),
    ],
)
def test_what_the_site_would_refuse_is_refused_first(
    isoflop: Command, folder: SweepFolder, fake: Fake, overrides: list[str], sentence: str
) -> None:
    here = os.uname().nodename
    fake.change(sinfo=[f"main*|1-00:00:00|64|256000|gpu:8(S:0-1)|{here}|4", f"short|30:00|64|256000|(null)|{here}|4"])
    said = isoflop("submit", *smoke(folder, *ON_SLURM, *overrides))
    assert said.code == 2
    assert sentence in said.sentence
    assert not folder.runs(), "nothing is half-submitted"
    assert not fake.calls("sbatch")


def test_a_root_that_nodes_cannot_see_is_refused(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    fake.change(sinfo=["main*|1-00:00:00|64|256000|gpu:8|node01,node02|2"])
    said = isoflop("submit", *smoke(folder, *ON_SLURM))
    assert said.code == 2
    assert f"root={folder.root} lies " in said.sentence and "which compute nodes do not share" in said.sentence
    assert isoflop("submit", *smoke(folder, *ON_SLURM, "cluster.check_root=false")).code == 0


def test_no_sbatch_on_path(isoflop: Command, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder.root))
    said = isoflop("submit", *smoke(folder, *ON_SLURM))
    assert said.code == 2
    assert "there is no sbatch on PATH" in said.sentence


def test_a_refusal_names_the_field_and_takes_everything_back(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    fake.change(
        fail={"sbatch": [None, "Batch job submission failed: Invalid account or account/partition combination"]}
    )
    said = isoflop("submit", *smoke(folder, *ON_SLURM, "cluster.account=typo", "cluster.canary=true"))
    assert said.code == 2
    assert "sbatch refused the jobs: Batch job submission failed: Invalid account" in said.sentence
    assert "correct cluster.account=typo" in said.sentence
    assert {task[0] for task in fake.all_tasks().values()} == {"CANCELLED"}, "the first array was already in"
    assert set(shown(isoflop, folder).values()) == {("planned", None)}
    assert len(submit(isoflop, folder)["submitted"]) == 4


def test_sbatch_that_does_not_answer_leaves_an_intent(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    fake.change(fail={"sbatch": "Batch job submission failed: Socket timed out on send/recv operation"})
    said = isoflop("submit", *smoke(folder, *ON_SLURM))
    assert said.code == 1
    assert "the same command does the rest" in said.sentence
    assert {state for state, _ in shown(isoflop, folder).values()} == {"queued"}, "it may have arrived"


@pytest.mark.parametrize("source", ["squeue", "sacct"])
@pytest.mark.parametrize(
    ("verdict", "cause", "kind"), [("OUT_OF_MEMORY", "OOM", "oom"), ("TIMEOUT", "timeout", "timeout")]
)
def test_a_limit_that_killed_a_run_is_a_failure_with_its_cause(
    isoflop: Command, folder: SweepFolder, fake: Fake, source: str, verdict: str, cause: str, kind: str
) -> None:
    first, *others = submit(isoflop, folder)["submitted"]
    run = start_and_vanish(folder, first, "0")
    if source == "squeue":
        fake.task("100_0", verdict, node="n3")
    else:
        fake.task("100_0", "")
        (path,) = open_jobs(folder)
        fake.change(sacct=["100_0|another job|COMPLETED|n1|None", f"100_0|{queue_name(path)}|{verdict}|n3|None"])
    found = shown(isoflop, folder)
    assert found[first] == ("failed", f"{cause}: SLURM ended 100_0 as {verdict} on n3")
    assert {found[other][0] for other in others} == {"queued"}
    assert len(fake.calls("sacct")) == (source == "sacct")
    assert submit(isoflop, folder)["submitted"] == []
    assert run.attempts()[-1]["why"] == f"{cause}: SLURM ended 100_0 as {verdict} on n3"
    fake.change(sacct=[])
    assert shown(isoflop, folder)[first][0] == "failed", "the ledger remembers what SLURM forgets"
    wrong = "timeout" if kind == "oom" else "oom"
    assert submit(isoflop, folder, f"retry={wrong}")["submitted"] == []
    assert submit(isoflop, folder, f"retry={kind}")["submitted"] == [first]
    assert {state for state, _ in shown(isoflop, folder).values()} == {"queued"}


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        "slurmstepd-n1: error: StepId=1.0 exceeded memory limit (2048 > 1024), being killed",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=100.batch.",
    ],
)
def test_memory_that_only_the_log_speaks_of(
    isoflop: Command, folder: SweepFolder, fake: Fake, words: str, forgotten: bool
) -> None:
    first, second, *_ = submit(isoflop, folder)["submitted"]
    run = start_and_vanish(folder, first, "0")
    ((path, _),) = open_jobs(folder).items()
    (path / "submitit" / "100_0_0_log.out").write_text(f"training\n{words}\nsrun: error: n1: task 0: Killed\n")
    (path / "submitit" / "100_1_0_log.out").write_text("training\n")
    for task in ("100_0", "100_1"):
        fake.task(task, "" if forgotten else "FAILED")
    assert shown(isoflop, folder)[first][0] == "failed"
    assert shown(isoflop, folder)[second] == ("planned", None)
    assert submit(isoflop, folder)["submitted"] == [second]
    assert run.attempts()[-1]["why"].startswith("OOM: SLURM ended 100_0 as OUT_OF_MEMORY")


def test_a_lost_node_is_no_failure(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    first, *_ = submit(isoflop, folder)["submitted"]
    run = start_and_vanish(folder, first, "0")
    fake.task("100_0", "NODE_FAIL")
    assert shown(isoflop, folder)[first] == ("planned", None)
    assert submit(isoflop, folder)["submitted"] == [first]
    assert run.attempts()[-1]["why"] == "lost: SLURM ended 100_0 as NODE_FAIL on n1"


def test_accounting_that_fails_changes_nothing(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    first, *_ = submit(isoflop, folder)["submitted"]
    fake.task("100_0", "")
    fake.change(fail={"sacct": "Slurm accounting storage is disabled"})
    assert shown(isoflop, folder)[first] == ("planned", None)
    assert submit(isoflop, folder)["submitted"] == [first]


def test_what_others_cancelled_waits_for_a_command(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    first, *_ = submit(isoflop, folder)["submitted"]
    fake.task("100_0", "CANCELLED")
    assert shown(isoflop, folder)[first] == ("planned", "SLURM's 100_0 was cancelled")
    assert submit(isoflop, folder)["submitted"] == [first]


def test_cancel_takes_waiting_tasks_out_of_the_queue(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    runs = submit(isoflop, folder)["submitted"]
    fake.task("100_0", "RUNNING")
    said = isoflop("cancel", *smoke(folder, *ON_SLURM, f"point={runs[1]}"))
    assert said.out.split() == [runs[1]]
    assert fake.calls("scancel") == ["100_1"]
    isoflop("cancel", *smoke(folder, *ON_SLURM))
    assert fake.calls("scancel")[1:] == ["100_2 100_3"], "in one call; a task that runs reads the file"
    assert {run: folder.run(run).cancel_path.exists() for run in runs} == dict.fromkeys(runs, True)


def test_points_that_left_are_cancelled_on_request(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    runs = submit(isoflop, folder)["submitted"]
    fewer = ["sweep.sizes=2", "sweep.spacing=4"]
    answer = submit(isoflop, folder, *fewer)
    assert set(answer["left"]) <= set(runs) and answer["left"]
    assert not fake.calls("scancel")
    submit(isoflop, folder, *fewer, "cancel_left=true")
    cancelled = {index for number, task in fake.all_tasks().items() if task[0] == "CANCELLED" for index in [number]}
    assert len(cancelled) == len(answer["left"])


def test_held_tasks_are_let_go_and_idle_ones_dropped(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    runs = submit(isoflop, folder)["submitted"]
    for index in (0, 1):
        fake.task(f"100_{index}", "PENDING", "JobHeldUser")
    isoflop("train", *smoke(folder, *ON_SLURM), f"point={runs[0]}")
    assert shown(isoflop, folder)[runs[1]][1] == "held (JobHeldUser): `scontrol release 100_1` or submit again"
    said = isoflop("submit", *smoke(folder, *ON_SLURM))
    assert "released 1 tasks that SLURM held" in said.err
    assert fake.calls("scontrol")[-1] == "release 100_1"
    assert fake.calls("scancel") == ["100_0"]


def test_a_canary_goes_first_and_the_rest_depends_on_it(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder, "cluster.canary=true")
    canary, rest = fake.scripts()
    assert "--array=0-0%1" in canary and "--dependency" not in canary
    assert "--array=0-2%3" in rest
    assert "#SBATCH --dependency=afterok:100\n" in rest and "#SBATCH --kill-on-invalid-dep=yes\n" in rest
    plan = json.loads(folder.plan_path.read_text())["points"]
    first = next(job for job in open_jobs(folder).values() if job.job_id == "100")
    assert first.runs == (min(plan, key=lambda point: point["hours"])["run_id"],)


def test_a_ceiling_throttles_and_queues(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder, "cluster.max_gpus=2")
    assert "--array=0-3%2" in fake.scripts()[0]
    submit(isoflop, folder, "cluster.max_gpus=2", "sweep.budgets=[1e10,2e10]")
    assert "#SBATCH --dependency=afterany:100\n" in fake.scripts()[1], "two of ours may run already"


def test_run_replaces_tasks_that_vanish_and_fits(
    isoflop: Command, folder: SweepFolder, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fates = iter(["vanish", "work"])

    def time_passes(seconds: float) -> None:
        fate = next(fates)
        monkeypatch.setattr(slurm, "POLL_SECONDS", 0)
        job = list(open_jobs(folder))[-1]
        for number in list(fake.all_tasks()):
            fake.task(number, "FAILED" if fate == "vanish" else "COMPLETED")
            if fate == "work" and number.startswith("101"):
                monkeypatch.setenv("SLURM_ARRAY_TASK_ID", number.partition("_")[2])
                assert life.live(job, []) == 0

    monkeypatch.setattr(run, "time", SimpleNamespace(sleep=time_passes))
    said = isoflop("run", *smoke(folder, *ON_SLURM))
    assert said.code == 0, said.err
    assert len(fake.calls("sbatch")) == 2
    assert "Exponents" in said.out or (folder.fit / "fit.json").exists()


def test_ctrl_c_in_run_leaves_the_jobs_alone(
    isoflop: Command, folder: SweepFolder, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "time", SimpleNamespace(sleep=interrupt))
    said = isoflop("run", *smoke(folder, *ON_SLURM))
    assert said.code == 130
    assert "SLURM's jobs go on (`isoflop cancel " in said.sentence
    assert not fake.calls("scancel")
    assert len(fake.all_tasks()) == 4


def test_jobs_import_what_was_submitted(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    submit(isoflop, folder)
    ((_, job),) = open_jobs(folder).items()
    code = folder.path / "code" / str(job.code)
    assert (code / "sweeps" / "task.py").exists() and (code / "conf" / "config.yaml").exists()
    assert json.loads((code / "versions.json").read_text())["versions"]["submitit"]
    assert f"PYTHONPATH={code}" in fake.scripts()[0]
    submit(isoflop, folder, "sweep.budgets=[1e10,2e10]")
    assert len(list((folder.path / "code").iterdir())) == 1, "once per content"


def test_status_of_one_point(isoflop: Command, folder: SweepFolder, fake: Fake) -> None:
    first, *_ = submit(isoflop, folder)["submitted"]
    start_and_vanish(folder, first, "0").end_attempt(0, "stopped: the time limit is near")
    ((path, _),) = open_jobs(folder).items()
    (path / "submitit" / "100_0_0_log.out").write_text("first line\nlast line\n")
    (point,) = isoflop("status", *smoke(folder, *ON_SLURM), f"point={first}", "format=json").json["points"]
    assert point["folder"] == str(folder.run(first).path)
    assert point["log_tail"] == ["first line", "last line"]
    assert point["ledger"][0]["why"] == "stopped: the time limit is near"
    said = isoflop("status", *smoke(folder, *ON_SLURM), f"point={first}").out
    assert "the time limit is near" in said and "last line" in said and str(Path("100_0_0_log.out")) in said

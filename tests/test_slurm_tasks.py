"""What tasks of a real cluster get, and in which order they start."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from slurm_cluster import Cluster, until
from slurm_storms import QUICK, Storm, waiting_sweep
from sweep_runs import ranks_of

from trainer.runfolder import LOST

pytestmark = pytest.mark.slurm
RANK = """\
import json, os, runpy, socket, sys
from multiprocessing.connection import Client, Listener
from pathlib import Path

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
me = {name: os.environ.get(name) for name in NAMES} | {"host": socket.gethostname()}
address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if me["RANK"] == "0":
    with Listener(address) as listener:
        others = [listener.accept().recv() for _ in range(int(me["WORLD_SIZE"]) - 1)]
    Path(sys.argv[1], "ranks.json").write_text(json.dumps([me, *others]))
    runpy.run_module("trainer.examples.law_trainer", run_name="__main__")
else:
    while True:
        try:
            Client(address).send(me)
            break
        except ConnectionRefusedError:
            pass
"""


def test_a_run_on_two_nodes_meets_at_rank_0(slurm: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = f'trainer.command="{sys.executable} {script} {{folder}}"'
    wide = ("sweep.sizes=1", "device=h100", "device.memory_gb=0.013", "cluster.devices_per_node=2")
    storm = Storm(slurm, tmp_path, sweep=(*QUICK, command, *wide))
    (planned,) = json.loads(storm.isoflop("plan", "format=json").stdout)["points"]
    assert planned["devices"] == 4, "two nodes of two"
    assert storm.isoflop("submit").returncode == 0
    until(storm.done, 300)
    (run,) = storm.folder.runs()
    ranks = sorted(json.loads((run.path / "ranks.json").read_text()), key=lambda rank: int(rank["RANK"]))
    assert [rank["RANK"] for rank in ranks] == ["0", "1", "2", "3"]
    assert [rank["LOCAL_RANK"] for rank in ranks] == ["0", "1", "0", "1"]
    assert {(rank["WORLD_SIZE"], rank["LOCAL_WORLD_SIZE"]) for rank in ranks} == {("4", "2")}
    first, second = ({rank["host"] for rank in ranks[:2]}, {rank["host"] for rank in ranks[2:]})
    assert len(first) == len(second) == 1 and first != second
    assert {rank["CUDA_VISIBLE_DEVICES"] for rank in ranks} == {"0,1"}
    assert len(run.attempts()) == 1


@pytest.mark.whole
def test_our_own_trainer_on_two_nodes_ends_as_on_one_device_whatever_befalls_it(slurm: Cluster, tmp_path: Path) -> None:
    batch = ("optim.batch_min=576", "optim.batch_max=576", "model.dtype=fp32", "limits.lost_attempts=5")
    own = ("sweep=smoke", "sweep.budgets=[1e12]", "sweep.sizes=1", "trainer.checkpoint_seconds=0.5", *batch)
    storm = Storm(slurm, tmp_path, sweep=(*own, "device.per_run=2"))
    (planned,) = json.loads(storm.isoflop("plan", "format=json").stdout)["points"]
    assert planned["devices"] == 2
    assert storm.isoflop("submit").returncode == 0
    until(storm.training, 300)
    (run,) = storm.folder.runs()
    (job,) = storm.running()
    os.kill(ranks_of(run)["1"], signal.SIGKILL)
    until(lambda: len(run.attempts()) == 2, 120)
    slurm.ask("scancel", "--signal=USR2", job["job"])
    storm.finish(300)
    lost, preempted, last = run.attempts()
    assert lost["why"] == LOST and preempted["why"].startswith("stopped: SIGUSR2"), storm.report("two nodes")
    assert last["why"] == "done" and last["resume_step"] >= preempted["resume_step"]
    assert (last["life"], last["devices"]) == (1, 2)
    alone = Storm(slurm, tmp_path / "alone", sweep=own)
    assert alone.isoflop("run", "cluster=local", "fit.replicates=50").returncode == 0
    (other,) = alone.folder.runs()
    assert other.run_id == run.run_id
    (mine,), (theirs,) = run.points().values(), other.points().values()
    assert mine["verdict"] == "done" and mine["loss"] == pytest.approx(theirs["loss"], abs=0.01), "less than seeds do"
    begin, same = (
        [(row["step"], row["tokens"], row["train_loss"]) for row in one.metrics()[:3]] for one in (run, other)
    )
    assert begin == [(step, tokens, pytest.approx(loss, rel=1e-3)) for step, tokens, loss in same]


def test_a_canary_that_dies_leaves_no_task_that_can_never_start(slurm: Cluster, tmp_path: Path) -> None:
    storm = Storm(slurm, tmp_path, sweep=(*QUICK, "trainer.command='sh -c \"sleep 3; exit 3\"'", "cluster.canary=true"))
    assert storm.isoflop("submit").returncode == 0
    assert len(storm.jobs()) == 4
    until(lambda: [job["state"] for job in storm.jobs().values()].count("RUNNING") == 1, 300)
    until(lambda: not storm.jobs(), 300)
    assert sorted(point["state"] for point in storm.points()) == ["failed", "planned", "planned", "planned"]


def test_the_ceiling_of_devices_holds(slurm: Cluster, tmp_path: Path) -> None:
    storm, gate = waiting_sweep(slurm, tmp_path, "cluster.max_gpus=2")
    assert storm.isoflop("submit").returncode == 0
    until(lambda: len(storm.running()) == 2, 300)
    storm.pause(5)
    assert len(storm.running()) == 2, "the others wait"
    gate.touch()
    storm.finish(300)


def test_the_limits_of_those_that_wait_follow_from_the_canarys_speed(slurm: Cluster, tmp_path: Path) -> None:
    slow = ("device.flops_per_second=2e6", "cluster.canary=true", "cluster.max_hours=20")
    storm, gate = waiting_sweep(slurm, tmp_path, *slow)
    assert storm.isoflop("submit").returncode == 0
    limits = slurm.ask("squeue", "--noheader", "--array", "--format=%l").split()
    assert set(limits) == {"5:20:00", "20:00:00"}
    gate.touch()
    until(lambda: any(run.points() for run in storm.folder.runs()), 300)
    until(lambda: set(slurm.ask("squeue", "--noheader", "--array", "--format=%l").split()) <= {"10:00"}, 60)
    storm.finish(300)

"""The test cluster itself: that its faults are the faults they claim to be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import NODES, Cluster, until

pytestmark = pytest.mark.slurm


def sleeper(slurm: Cluster, tmp_path: Path, *options: str) -> str:
    """A job that sleeps, running."""
    words = ["sbatch", "--parsable", f"--output={tmp_path}/%j.out", *options, "--wrap", "date; sleep 600"]
    job = slurm.ask(*words).strip()
    until(lambda: slurm.jobs()[job]["state"] == "RUNNING", 60)
    return job


def test_nodes_gpus_and_accounting(slurm: Cluster, tmp_path: Path) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES $SLURMD_NODENAME"
    slurm.ask("sbatch", "--wait", "--gpus=3", "--nodelist=n3", f"--output={tmp_path}/said", "--wrap", script)
    assert (tmp_path / "said").read_text() == "0,1,2 n3\n"
    until(lambda: "COMPLETED" in slurm.ask("sacct", "-X", "-n", "-P", "--format=State"), 30)


def test_a_lost_slurmd_leaves_its_jobs_running_and_a_lost_node_does_not(slurm: Cluster, tmp_path: Path) -> None:
    first, second = sleeper(slurm, tmp_path, "--nodelist=n1"), sleeper(slurm, tmp_path, "--nodelist=n2")
    slurm.kill_daemon("n1")
    slurm.fail_node("n2")
    assert slurm.processes("n1", first)
    assert not slurm.processes("n2", second)
    assert slurm.jobs()[first]["state"] == slurm.jobs()[second]["state"] == "RUNNING", "SLURM does not know yet"


def test_clear_mends_everything(slurm: Cluster, tmp_path: Path) -> None:
    sleeper(slurm, tmp_path, "--nodelist=n1")
    for name in ("n1", "slurmdbd", "slurmctld"):
        slurm.kill_daemon(name)
    slurm.clear()
    assert slurm.jobs() == {}
    assert not [pid for node in NODES for pid in slurm.processes(node)]
    assert slurm.ready()


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--require-slurm",), 1)])
def test_where_slurm_is_not_installed(options: tuple[str, ...], code: int) -> None:
    """Skipped with the way to install it; a failure where the tests are not to be skipped."""
    command = [sys.executable, "-m", "pytest", __file__, "-k", "mends", *options]
    bare = {"PATH": "/nonexistent", "PYTHONPATH": str(Path(__file__).parents[1])}
    said = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == code
    assert "sbatch" in said.stdout
    assert "apt-get install --no-install-recommends slurm-wlm slurmdbd munge mariadb-server" in said.stdout

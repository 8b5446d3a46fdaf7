"""Random schedules of faults over a real sweep on a real cluster: nothing lost, nothing twice, losses the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from slurm_cluster import Cluster, until
from slurm_storms import ISOFLOP, SWEEP, Storm, interleaved, measured

from sweeps.paths import SweepFolder
from trainer.lock import holder

pytestmark = pytest.mark.slurm
SHORT, WHOLE = (0, 1), range(50)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", WHOLE if metafunc.config.getoption("--whole") else SHORT)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """The same sweep, undisturbed, without SLURM."""
    root = tmp_path_factory.mktemp("calm")
    command = [*ISOFLOP, "run", *SWEEP, f"root={root}", "fit.replicates=20"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return SweepFolder.of(str(root), "smoke")


def test_a_storm(slurm: Cluster, calm: SweepFolder, tmp_path: Path, seed: int) -> None:
    storm = Storm(slurm, tmp_path, seed)
    assert storm.isoflop("submit").returncode == 0
    until(storm.training, 120)
    for _ in range(storm.fate.randint(3, 7)):
        storm.strike()
        storm.pause(storm.fate.uniform(0.2, 4))
        if storm.done():
            break
    storm.finish(400)
    assert [run.run_id for run in storm.folder.runs()] == [run.run_id for run in calm.runs()]
    for disturbed, undisturbed in zip(storm.folder.runs(), calm.runs(), strict=True):
        assert measured(disturbed) == measured(undisturbed), storm.report(disturbed.run_id)
        assert not interleaved(disturbed), storm.report(disturbed.run_id)
        assert holder(disturbed.path) is None
        assert all("why" in attempt for attempt in disturbed.attempts()), storm.report(disturbed.run_id)
    assert {point["state"] for point in storm.points()} == {"done"}

"""Random schedules of faults over a real sweep on a real cluster: nothing lost, nothing twice, losses the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from slurm_cluster import Cluster, until
from slurm_storms import ISOFLOP, SWEEP, Storm, interleaved, measured

from sweeps.paths import SweepFolder
from trainer.lock import holder

pytestmark = pytest.mark.slurm
SHORT, WHOLE = (0,), range(50)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", WHOLE if metafunc.config.getoption("--whole") else SHORT)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """The same sweep, undisturbed, without SLURM."""
    root = tmp_path_factory.mktemp("calm")
    command = [*ISOFLOP, "run", *SWEEP, f"root={root}", "fit.replicates=20"]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    return SweepFolder.of(str(root), "smoke")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for the sweep and little else."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24M", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root's rights")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_storm(slurm: Cluster, calm: SweepFolder, tmp_path: Path, seed: int) -> None:
    storm = Storm(slurm, tmp_path, seed)
    assert storm.isoflop("submit").returncode == 0
    until(lambda: storm.training() or storm.done(), 300)
    for _ in range(storm.fate.randint(3, 7)):
        storm.strike()
        storm.pause(storm.fate.uniform(0.2, 4))
        if storm.done():
            break
    storm.finish(900)
    assert_as_calm(storm, calm)
    assert {point["state"] for point in storm.points()} == {"done"}


def test_a_full_disk_ends_the_tasks_and_more_room_continues_them(
    slurm: Cluster, calm: SweepFolder, small_disk: Path
) -> None:
    storm = Storm(slurm, small_disk)
    assert storm.isoflop("submit").returncode == 0
    until(storm.training, 300)
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
    until(lambda: not storm.jobs(), 300)
    assert not storm.done()
    filler.unlink()
    storm.finish(600)
    assert_as_calm(storm, calm)


def assert_as_calm(storm: Storm, calm: SweepFolder) -> None:
    """Nothing lost, nothing twice, every loss and row that of the undisturbed sweep."""
    assert [run.run_id for run in storm.folder.runs()] == [run.run_id for run in calm.runs()]
    for disturbed, undisturbed in zip(storm.folder.runs(), calm.runs(), strict=True):
        assert measured(disturbed) == measured(undisturbed), storm.report(disturbed.run_id)
        assert len(interleaved(disturbed)) <= storm.struck["hang_node"], storm.report(disturbed.run_id)
        assert holder(disturbed.path) is None
        assert all("why" in attempt for attempt in disturbed.attempts()), storm.report(disturbed.run_id)

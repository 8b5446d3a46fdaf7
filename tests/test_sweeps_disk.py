"""A disk that fills up while a sweep trains: one sentence, and nothing measured is lost."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Answer

from sweeps.paths import SweepFolder

SMALL = ["sweep=smoke", "sweep.budgets=[1e10]", "sweep.sizes=3", "trainer.checkpoint_seconds=0.1", "fit.replicates=20"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, just large enough for the corpus."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5200k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root's rights")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_full_disk_stops_the_sweep_and_more_room_continues_it(disk: Path, isoflop: Callable[..., Answer]) -> None:
    said = isoflop("run", *SMALL, f"root={disk}")
    assert said.code == 1
    assert "the disk is full; free some space and start again" in said.sentence
    folder = SweepFolder.of(str(disk), "smoke")
    measured = {run.run_id: run.points() for run in folder.runs()}
    subprocess.run(["mount", "-o", "remount,size=100M", disk], check=True)
    again = isoflop("run", *SMALL, f"root={disk}")
    assert again.code == 0, again.err
    for run in folder.runs():
        records = [json.loads(line) for line in (run.path / "points.jsonl").read_text().splitlines()]
        assert [record["verdict"] for record in records if record.get("verdict")] == ["done"]
        for point_id, record in measured.get(run.run_id, {}).items():
            assert run.points()[point_id] == record

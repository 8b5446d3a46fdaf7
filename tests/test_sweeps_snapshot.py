"""Snapshots: what jobs import, and the record of what else they found."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import pytest

from sweeps.dispatch.snapshot import HERE, PACKAGES, changes, git, take, versions
from sweeps.paths import SweepFolder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkout of packages."""
    place = tmp_path / "checkout"
    for name in PACKAGES:
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text(f"NAME = {name!r}\n")
    (place / "conf" / "config.yaml").write_text("a: 1\n")
    (place / "sweeps" / "notes.txt").write_text("no code")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=place, check=True)
    return place


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    return SweepFolder.of(str(tmp_path / "root"), "sweep")


def test_a_snapshot_is_the_code_and_where_it_came_from(source: Path, sweep: SweepFolder) -> None:
    (source / "trainer" / "__init__.py").write_text("NAME = 'edited'\n")
    place = take(sweep, source)
    assert (place / "trainer" / "__init__.py").read_text() == "NAME = 'edited'\n"
    assert (place / "conf" / "config.yaml").exists()
    assert not (place / "sweeps" / "notes.txt").exists()
    record = json.loads((place / "versions.json").read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=True)
    assert record["git"] == head.stdout.strip()
    assert record["versions"] == versions()
    assert "+NAME = 'edited'" in (place / "changes.diff").read_text()


def test_one_per_content(source: Path, sweep: SweepFolder) -> None:
    first = take(sweep, source)
    assert take(sweep, source) == first
    (source / "trainer" / "__init__.py").write_text("NAME = 'edited'\n")
    assert take(sweep, source) != first
    assert (first / "trainer" / "__init__.py").read_text() == "NAME = 'trainer'\n", "what was submitted stays"


def test_two_takers_at_once(source: Path, sweep: SweepFolder) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(take(sweep, source))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4
    assert list((sweep.path / "code").iterdir()) == [found[0]]


def test_code_outside_of_a_checkout_has_no_commit(tmp_path: Path, source: Path, sweep: SweepFolder) -> None:
    other = source / "venv"  # inside somebody's repository, but not of it
    (other / "sweeps").mkdir(parents=True)
    (other / "sweeps" / "__init__.py").touch()
    assert git(other) == (None, "")
    assert git(tmp_path / "nowhere") == (None, "")


def test_changes_name_what_differs(source: Path, sweep: SweepFolder) -> None:
    place = take(sweep, source)
    assert changes(place) == []
    record = json.loads((place / "versions.json").read_text())
    record["versions"] |= {"python": "3.0.0", "gone": "1.0"}
    del record["versions"]["numpy"]
    (place / "versions.json").write_text(json.dumps(record))
    now = versions()
    assert changes(place) == [
        "gone 1.0 -> absent",
        f"numpy absent -> {now['numpy']}",
        f"python 3.0.0 -> {now['python']}",
    ]
    assert changes(place / "nowhere") == []


def test_everything_that_a_task_reads_is_in_it(sweep: SweepFolder) -> None:
    place = take(sweep)
    for name in PACKAGES:
        there = {path.relative_to(HERE) for path in (HERE / name).rglob("*") if path.is_file()}
        needed = {path for path in there if path.suffix not in (".pyc", ".png", ".md", ".css", ".html", ".js")}
        assert all((place / path).exists() for path in needed), needed
    assert (place / "trainer" / "native" / "step.cpp").exists()

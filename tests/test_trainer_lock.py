from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from trainer_runs import REPOSITORY

from trainer import lock as lock_module
from trainer.lock import STALE_SECONDS, Holder, Lock, holder, process_birth

HOLD = """
import sys, time
from pathlib import Path
from trainer.lock import Lock
with Lock(Path(sys.argv[1]), "child") as held:
    print("held" if held else "refused", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "BEAT_SECONDS", 0.02)


def hold_in_child(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def plant(
    folder: Path,
    *,
    host: str,
    pid: int = 1,
    born: str = "",
    age: float = 0,
    beat_age: float | None = None,
    space: str = "",
) -> Holder:
    """A lock as another process would have left it, ``age`` seconds ago, that last beat ``beat_age`` seconds ago."""
    who = Holder("planted", host, pid, born, "job", space)
    (folder / "lock").write_text(json.dumps(asdict(who)))
    (folder / "heartbeat").touch()
    for name, seconds in (("lock", age), ("heartbeat", beat_age)):
        if seconds is None:
            (folder / name).unlink()
        else:
            then = time.time() - seconds
            os.utime(folder / name, (then, then))
    return who


def test_one_holder_at_a_time_and_nothing_left_behind(tmp_path: Path) -> None:
    with Lock(tmp_path, "first") as held:
        assert held is not None and held.owned()
        found = holder(tmp_path)
        assert found is not None and (found.pid, found.job) == (os.getpid(), "first")
        with Lock(tmp_path, "second") as second:
            assert second is None
        assert held.owned()
    assert holder(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat"]
    with Lock(tmp_path) as again:
        assert again is not None


def test_an_exception_releases_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Lock(tmp_path):
        raise RuntimeError
    assert holder(tmp_path) is None


def test_a_killed_holder_is_taken_over_at_once(tmp_path: Path) -> None:
    child = hold_in_child(tmp_path)
    with Lock(tmp_path) as held:
        assert held is None
    child.kill()
    deadline = time.monotonic() + 5
    while process_birth(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.001)  # not reaped yet: a zombie holds nothing
    with Lock(tmp_path) as held:
        assert held is not None
    child.communicate()


def test_a_later_process_with_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    plant(tmp_path, host=socket.gethostname(), pid=os.getpid(), born="another boot/1", beat_age=0)
    assert holder(tmp_path) is None
    with Lock(tmp_path) as held:
        assert held is not None


def test_another_hosts_lock_stands_while_its_heart_beats(tmp_path: Path) -> None:
    planted = plant(tmp_path, host="elsewhere", age=1000, beat_age=STALE_SECONDS / 2)
    assert holder(tmp_path) == planted
    with Lock(tmp_path) as held:
        assert held is None
    assert json.loads((tmp_path / "lock").read_text())["token"] == "planted"


def test_another_hosts_lock_stands_before_its_first_beat(tmp_path: Path) -> None:
    planted = plant(tmp_path, host="elsewhere", age=1, beat_age=None)
    assert holder(tmp_path) == planted


@pytest.mark.parametrize("age", [STALE_SECONDS + 5, None])
def test_another_hosts_lock_falls_when_its_heart_stopped(tmp_path: Path, age: float | None) -> None:
    plant(tmp_path, host="elsewhere", age=1000, beat_age=age)
    assert holder(tmp_path) is None
    with Lock(tmp_path) as held:
        assert held is not None and held.owned()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": 1}', b"\xff\xfe"])
def test_a_lock_file_that_says_nothing_is_nobodys(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert holder(tmp_path) is None
    with Lock(tmp_path) as held:
        assert held is not None


def test_the_heart_beats(tmp_path: Path, quick: None) -> None:
    with Lock(tmp_path) as held:
        assert held is not None
        os.utime(tmp_path / "heartbeat", (0, 0))
        deadline = time.monotonic() + 10
        while time.time() - (tmp_path / "heartbeat").stat().st_mtime > 100:
            assert time.monotonic() < deadline, "no beat came"
            time.sleep(0.01)
        assert not held.lost.is_set()


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_lost_lock_is_noticed_and_left_to_its_new_holder(tmp_path: Path, quick: None, how: str) -> None:
    with Lock(tmp_path) as held:
        assert held is not None
        if how == "replaced":
            plant(tmp_path, host="elsewhere", beat_age=0)
        else:
            (tmp_path / "lock").unlink()
        assert held.lost.wait(10)
        assert not held.owned()
    assert (tmp_path / "lock").exists() == (how == "replaced")


def take(folder: Path, barrier: object, answers: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    with Lock(folder) as held:
        answers.put(held is not None)  # type: ignore[attr-defined]
        barrier.wait()  # type: ignore[attr-defined]


@pytest.mark.parametrize("dead", [True, False])
def test_of_two_takers_exactly_one_wins(tmp_path: Path, whole: bool, dead: bool) -> None:
    context = multiprocessing.get_context("fork")
    for turn in range(60 if whole else 12):
        folder = tmp_path / str(turn)
        folder.mkdir()
        if dead:
            plant(folder, host="elsewhere", age=1000, beat_age=STALE_SECONDS + 9)
        barrier, answers = context.Barrier(3), context.Queue()
        takers = [context.Process(target=take, args=(folder, barrier, answers)) for _ in range(3)]
        for taker in takers:
            taker.start()
        wins = sum(answers.get(timeout=20) for _ in takers)
        for taker in takers:
            taker.join()
        assert wins == 1
        assert {path.name for path in folder.iterdir()} <= {"heartbeat"}


def test_a_holder_that_slept_asks_before_it_believes_its_last_beat(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    assert lock.acquire()
    try:
        assert not lock.was_lost()
        (tmp_path / "lock").unlink()  # taken away while nobody looked
        lock._beaten -= 100
        assert lock.was_lost()
        assert lock.lost.is_set()
    finally:
        lock.release()


def test_who_would_take_a_lock_goes_by_the_file_systems_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is an hour ahead takes no living lock."""
    elsewhere = {"token": "t", "host": "elsewhere", "pid": 1, "born": "b", "job": ""}
    (tmp_path / "lock").write_text(json.dumps(elsewhere))
    (tmp_path / "heartbeat").touch()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    with Lock(tmp_path) as lock:
        assert lock is None


@pytest.mark.parametrize(("beat_age", "lives"), [(5, True), (120, False)])
def test_of_another_process_namespace_only_the_heartbeat_tells(tmp_path: Path, beat_age: float, lives: bool) -> None:
    """A container that shares the host's name sees none of the processes outside of it."""
    plant(tmp_path, host=socket.gethostname(), pid=2**22 + 1, age=120, beat_age=beat_age, space="pid:[1]")
    assert (holder(tmp_path) is not None) == lives
    with Lock(tmp_path) as lock:
        assert (lock is None) == lives

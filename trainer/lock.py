"""One writer per folder, also where flock means nothing: a lock file made by link(2), and a heartbeat beside it.

A lock is dead when its process is known to be gone (same machine and process namespace) or when its heartbeat is older
than ``STALE_SECONDS`` (elsewhere): by the file system's own clock for who would take it, by this machine's for who only
looks. A dead lock is taken over by renaming it away, which only one taker can do.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from trainer.files import disk_faults, write_whole

BEAT_SECONDS = 2.0
STALE_SECONDS = 60.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lock; ``born`` tells a process from a later one with its number."""

    token: str
    host: str
    pid: int
    born: str
    job: str
    space: str = ""
    """In which of its host's process namespaces the number counts; "" where there are none."""


def process_birth(pid: int) -> str | None:
    """When the process began, in the kernel's own words; "" where that cannot be known; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    except ProcessLookupError:  # it went while we looked
        return None
    except OSError:
        return ""
    return None if fields[0] in "ZX" else f"{_boot()}/{fields[19]}"  # a zombie holds nothing


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> str:
    """Containers with processes of their own see none of the others', though they may share the host's name."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def holder(folder: Path) -> Holder | None:
    """Who holds the folder's lock and lives; None if nobody."""
    found = _read(folder / "lock")
    return found if found is not None and _lives(folder, found) else None


def held_by(folder: Path, token: str) -> bool:
    """Whether the folder's lock is the one with this token, and its holder lives."""
    found = holder(folder)
    return found is not None and found.token == token


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _lives(folder: Path, who: Holder, now: float | None = None) -> bool:
    if who.host == socket.gethostname() and who.space in ("", _space()):
        birth = process_birth(who.pid)
        return birth is not None and birth in ("", who.born)
    beaten = max(map(_mtime, (folder / "lock", folder / "heartbeat")))
    return (time.time() if now is None else now) - beaten < STALE_SECONDS


def _mtime(path: Path) -> float:
    """When a file was last touched; opened first, for NFS shows up to a minute late what is only looked at."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return 0.0
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)


@contextmanager
def _takers_in_turn(folder: Path) -> Iterator[None]:
    """One taker at a time where the file system has flock, so that none renames away a lock just made by another.

    Elsewhere two takers of one dead lock could both win; the loser sees it at its next beat.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class LockLost(Exception):
    """The lock was taken away from its holder, who must write nothing more."""


class Lock:
    """Holds a folder's lock while its ``with`` block runs, beating every ``BEAT_SECONDS``.

    ``with Lock(folder, job) as lock`` gives None where somebody else holds it. ``lock.lost`` is set when the lock was
    taken away (the machine slept, the folder was moved): its holder must then write nothing more.
    """

    def __init__(self, folder: Path, job: str = "") -> None:
        self.folder = folder
        self.lost = threading.Event()
        pid = os.getpid()
        self._me = Holder(secrets.token_hex(8), socket.gethostname(), pid, process_birth(pid) or "", job, _space())
        self._beaten = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {folder.name}", daemon=True)

    @property
    def token(self) -> str:
        """What tells this lock from every other."""
        return self._me.token

    def acquire(self) -> bool:
        """Take the lock and begin to beat; False where somebody else holds it."""
        if not self._take():
            return False
        self._thread.start()
        return True

    def release(self) -> None:
        """Stop beating and give the lock back."""
        self._stop.set()
        self._thread.join()
        if self.owned():
            (self.folder / "lock").unlink(missing_ok=True)

    def __enter__(self) -> Lock | None:
        return self if self.acquire() else None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._thread.ident is not None:  # never held, nothing to give back
            self.release()

    def was_lost(self) -> bool:
        """Whether the lock was taken away; asks the disk where the last beat is too old to know (the machine slept)."""
        if time.monotonic() - self._beaten > 2 * BEAT_SECONDS and not self.owned():
            self.lost.set()
        return self.lost.is_set()

    def owned(self) -> bool:
        """Whether the file on disk is still this lock."""
        found = _read(self.folder / "lock")
        return found is not None and found.token == self._me.token

    def _take(self) -> bool:
        path = self.folder / "lock"
        mine = self.folder / f".lock.{self._me.token}"
        write_whole(mine, json.dumps(asdict(self._me)))
        try:
            with _takers_in_turn(self.folder):
                for _ in range(3):
                    with suppress(FileExistsError):
                        os.link(mine, path)
                        self._touch()
                        return True
                    found = _read(path)
                    if found is not None and found.token == self._me.token:
                        self._touch()  # NFS may call a link that it made twice a failure
                        return True
                    if found is not None and _lives(self.folder, found, now=_mtime(mine)):  # the file system's clock
                        return False
                    self._clear_dead(path, found)
            return False
        finally:
            mine.unlink(missing_ok=True)

    def _clear_dead(self, path: Path, dead: Holder | None) -> None:
        """Rename a dead lock away; where a live one was caught by the rename instead, put it back."""
        caught_path = self.folder / f".lock.dead.{self._me.token}"
        try:
            path.rename(caught_path)
        except FileNotFoundError:
            return
        caught = _read(caught_path)
        if caught is not None and (dead is None or caught.token != dead.token):
            with suppress(FileExistsError):  # a third was quicker; the caught lock's owner sees that it lost it
                os.link(caught_path, path)
        caught_path.unlink(missing_ok=True)

    def _touch(self) -> None:
        with disk_faults(self.folder / "heartbeat"):
            (self.folder / "heartbeat").touch()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            if not self.owned():
                self.lost.set()
                return
            self._beaten = time.monotonic()
            with suppress(OSError):  # a full disk; the next beat may pass
                (self.folder / "heartbeat").touch()

"""A program that trains a run in the place of the worker that started it: its start, its log, its end.

It dies with the worker, however that dies, and one that outlived its worker all the same is ended before the next.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.files import write_json
from trainer.lock import process_birth
from trainer.runfolder import RunFolder

GRACE_SECONDS = 30.0
"""How long a program may take to stop."""
SIGNAL_SECONDS = 2.5
"""A scheduler that ends a job signals the program and the worker in any order, and not at the same moment."""
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
SAID_BYTES = 65_536
"""Of what a program wrote, the end that is looked at."""


@dataclass(frozen=True, kw_only=True)
class Left:
    """How a program left."""

    code: int
    stopped: str | None
    """Why it was asked to; None where it left by itself."""
    said: Sequence[str]
    """The last lines that it wrote, without the empty ones."""


def run_program(
    folder: RunFolder,
    command: Sequence[str],
    environment: Mapping[str, str],
    should_stop: Callable[[], str | None],
    grace: float = GRACE_SECONDS,
) -> Left:
    """Run a program on the folder until it leaves, or is asked to; what it says goes into the folder's log.

    Raises
    ------
    OSError
        If it cannot start.
    """
    log = folder.path / "trainer.log"
    with log.open("ab") as output:
        told = output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    try:
        write_json(_owner_path(folder), _owner(process))
        stopped = _wait(process, should_stop, grace)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    with log.open("rb") as written:
        written.seek(max(told, log.stat().st_size - SAID_BYTES))
        lines = written.read().decode(errors="replace").splitlines()
    return Left(code=process.returncode, stopped=stopped, said=[line.strip() for line in lines if line.strip()])


def late_reason(should_stop: Callable[[], str | None]) -> str | None:
    """Why a program that left was really stopped, if the worker hears of it just after."""
    deadline = time.monotonic() + SIGNAL_SECONDS
    while (reason := should_stop()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return reason


def end_with_parent() -> None:
    """In the child: be killed with its parent, however that dies; whoever takes over may be on another machine."""
    with suppress(AttributeError):  # only Linux has it
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _owner(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": process.pid, "born": process_birth(process.pid)}


def _owner_path(folder: RunFolder) -> Path:
    return folder.path / "trainer.json"


def end_orphan(folder: RunFolder) -> None:
    """Kill a program that outlived its worker: it would write beside the one to be started."""
    try:
        owner = json.loads(_owner_path(folder).read_text())
        host, pid, born = owner["host"], int(owner["pid"]), owner["born"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if host == socket.gethostname() and born and process_birth(pid) == born:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], should_stop: Callable[[], str | None], grace: float) -> str | None:
    """Wait for the program; stop it when asked to. Returns the reason, None if it left by itself."""
    pause = 0.005
    while process.poll() is None:
        reason = should_stop()
        if reason is not None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return reason
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
    return None

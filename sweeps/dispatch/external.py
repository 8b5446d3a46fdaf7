"""Runs trained by somebody else's program: ``trainer.command`` gets the run folder and keeps its contract.

In the command ``{folder}`` is the run folder and ``{python}`` the interpreter that isoflop runs under.

The program finds the recipe in ``config.yaml``, appends rows to ``metrics.jsonl`` and one final record per point to
``points.jsonl`` (see :mod:`trainer.runfolder`; ``trainer/examples/law_trainer.py`` does it in fifty lines). It may
find its own checkpoints in the folder when it is started again; on SIGTERM it should save one and leave.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sweeps.dispatch.ranks import Ranks, spread
from trainer.files import write_json
from trainer.lock import LockLost, process_birth
from trainer.runfolder import RunConfig, RunFolder

GRACE_SECONDS = 30.0
"""How long the program may take to stop."""
SIGNAL_SECONDS = 2.5
"""A scheduler that ends a job signals the program and the worker in any order, and not at the same moment."""
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
ALONE = {"SLURM_NTASKS": "1", "SLURM_NPROCS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
"""What a program on one device should see: some would take the workers beside theirs for their own ranks."""


class ExternalTrainerError(Exception):
    """The program did not start, or left without a final record."""


def train_externally(
    folder: RunFolder,
    config: RunConfig,
    job: str,
    should_stop: Callable[[], str | None],
    ranks: Ranks | None = None,
) -> str:
    """Run ``trainer.command`` on the folder, once per rank where there are several, and judge what it left there.

    Returns
    -------
    str
        The last point's verdict, or ``stopped: <reason>``.

    Raises
    ------
    ExternalTrainerError
        If it cannot start, or ends by itself without a valid final record for every point.
    """
    filled = {"{folder}": str(folder.path), "{python}": sys.executable}
    command = shlex.split(config.recipe.command or "")
    for placeholder, value in filled.items():
        command = [part.replace(placeholder, value) for part in command]
    if ranks is not None:
        command = spread(command, ranks)
    _end_orphan(folder)
    rows = folder.metrics()
    attempt = folder.start_attempt(job, rows[-1]["step"] + 1 if rows else 0)
    log = folder.path / "trainer.log"
    why = "the worker failed"
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(alone=ranks is None) | {"ISOFLOP_ATTEMPT": str(attempt)},
                start_new_session=True,
                preexec_fn=_end_with_worker,
            )
        try:
            write_json(_owner_path(folder), _owner(process))
            stopped = _wait(process, should_stop)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        points = folder.points()
        if stopped is None and not points and process.returncode:
            stopped = _late_reason(should_stop)
        if all(point_id in points for point_id in config.recipe.point_ids):
            why = str(points[config.recipe.point_ids[-1]]["verdict"])
        elif stopped is not None:
            why = f"stopped: {stopped}"
        else:
            found = "; ".join(f"one was not valid: {reason}" for reason in folder.flaws()[-1:])
            why = f"trainer.command left no final record (exit code {process.returncode})" + (found and f"; {found}")
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise ExternalTrainerError(why + (f", and said last: {lines[-1][:200]}" if lines else ""))
    except LockLost:
        raise
    except (OSError, IndexError) as error:
        why = f"trainer.command={config.recipe.command!r} cannot start: {error}"
        folder.end_attempt(attempt, why)
        raise ExternalTrainerError(why) from error
    except BaseException:
        folder.end_attempt(attempt, why)
        raise
    folder.end_attempt(attempt, why)
    return why


def _environment(alone: bool) -> dict[str, str]:
    """The worker's, without what protects the worker alone."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return inherited | (ALONE if alone and "SLURM_PROCID" in inherited else {})


def _end_with_worker() -> None:
    """In the child: be killed with the worker, however it dies; whoever takes the run up may be on another machine."""
    with suppress(AttributeError):  # only Linux has it
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _owner(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": process.pid, "born": process_birth(process.pid)}


def _owner_path(folder: RunFolder) -> Path:
    return folder.path / "trainer.json"


def _end_orphan(folder: RunFolder) -> None:
    """Kill a program that outlived its worker: it would write beside the one to be started."""
    try:
        owner = json.loads(_owner_path(folder).read_text())
        host, pid, born = owner["host"], int(owner["pid"]), owner["born"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if host == socket.gethostname() and born and process_birth(pid) == born:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _late_reason(should_stop: Callable[[], str | None]) -> str | None:
    """Why a program that failed was really stopped, if the worker hears of it just after."""
    deadline = time.monotonic() + SIGNAL_SECONDS
    while (reason := should_stop()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return reason


def _wait(process: subprocess.Popen[bytes], should_stop: Callable[[], str | None]) -> str | None:
    """Wait for the program; stop it when asked to. Returns the reason, None if it left by itself."""
    pause = 0.005
    while process.poll() is None:
        reason = should_stop()
        if reason is not None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return reason
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
    return None

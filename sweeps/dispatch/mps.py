"""NVIDIA's multi-process service, while several processes of ours share a GPU.

Without it a GPU runs the kernels of one process at a time; with it, those of all at once. The first process that needs
it starts the control program, with folders of its own; the last one ends it. A service that the environment names
already is used and left as it is.

References
----------
NVIDIA, "Multi-Process Service", chapter "Environment Variables" and section "nvidia-cuda-mps-control".
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
SECONDS = 30.0
"""How long the control program may take to answer."""


@contextmanager
def shared_gpus(wanted: bool) -> Iterator[str | None]:
    """Processes that this one starts, and it itself once it uses CUDA, share GPUs through the service meanwhile.

    Yields
    ------
    str or None
        Why they do not; None where they do, or nothing was ``wanted``. It is also remarked on stderr.
    """
    if not wanted or PIPES in os.environ:
        yield None
        return
    place = _place()
    program = shutil.which(CONTROL)
    if program is None:
        yield _remark(f"there is no {CONTROL} on PATH")
        return
    ours = {PIPES: str(place / "pipe"), LOGS: str(place / "log")}
    with place.with_suffix(".users").open("w") as users:
        with _alone(place):
            fcntl.flock(users, fcntl.LOCK_SH)
            for folder in ours.values():
                Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            why = _start(program, ours)
        if why is None:
            os.environ.update(ours)
        try:
            yield None if why is None else _remark(why)
        finally:
            for name in ours if why is None else ():
                os.environ.pop(name, None)
            with _alone(place):
                if _last(users):
                    _ask(program, ours, "quit")
                    shutil.rmtree(place, ignore_errors=True)


def _place() -> Path:
    """Where this user's processes meet; those of a SLURM job by themselves. Short, as sockets lie in it."""
    job = os.environ.get("SLURM_JOB_ID", "local")
    return Path(tempfile.gettempdir()) / f"isoflop-mps-{os.getuid()}-{job}"


def _start(program: str, ours: dict[str, str]) -> str | None:
    """Start the service unless it answers; why it does not start, where it does not."""
    if _ask(program, ours, "get_server_list") is None:
        return None
    return _ask(program, ours, None)


def _ask(program: str, ours: dict[str, str], command: str | None) -> str | None:
    """Give the service a command, or without one start it; what went wrong, where something did.

    It has to see every GPU under the number that its clients name it by, not just this process's.
    """
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | ours
    try:
        done = subprocess.run(
            [program] if command else [program, "-d"],
            input=command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{CONTROL} does not work: {error}"
    said = (done.stderr or done.stdout).strip().splitlines()
    return f"{CONTROL} fails ({said[0][:200] if said else f'exit code {done.returncode}'})" if done.returncode else None


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time starts and ends the service; locks lie beside the folder, which the last removes."""
    with place.with_suffix(".lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield


def _last(users: IO[str]) -> bool:
    """Whether no other process uses the service; a killed one does not count."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remark(why: str) -> str:
    sys.stderr.write(f"isoflop: runs share a GPU without NVIDIA's multi-process service, in turns: {why}\n")
    return why

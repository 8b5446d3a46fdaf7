"""Runs on several devices: one process per device, with the environment that torch.distributed reads.

The worker of such a run starts ``srun ... python -m sweeps.dispatch.ranks DEVICES COMMAND``, where each rank then
becomes the command; without SLURM ``python -m sweeps.dispatch.ranks --here DEVICES COMMAND``, which starts them all.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.dispatch.program import end_with_parent

FIRST_PORT, PORTS = 20_000, 10_000
SIGNALLED = 128
"""Plus the signal's number: the exit code of a process that a signal ended, as shells have it."""


@dataclass(frozen=True)
class Ranks:
    """What a task with more than one device spreads a run over."""

    nodes: int
    devices: int
    """Of one node."""
    cpus: int
    """Of one device."""
    srun: bool = True
    """Whether SLURM starts them; else they are all on this machine."""

    @property
    def count(self) -> int:
        """Of all nodes."""
        return self.nodes * self.devices


def here(devices: int) -> Ranks | None:
    """Those of a run that has so many devices of this machine; None for one."""
    return Ranks(nodes=1, devices=devices, cpus=1, srun=False) if devices > 1 else None


def spread(command: Sequence[str], ranks: Ranks) -> list[str]:
    """The command that starts ``command`` once per device of this task."""
    own = [sys.executable, "-m", "sweeps.dispatch.ranks"]
    if not ranks.srun:
        return [*own, "--here", str(ranks.devices), *command]
    return [
        *("srun", "--overlap", "--kill-on-bad-exit=1", "--label"),
        # block: neighbouring ranks share a node, as torch.distributed programs take for granted
        *(f"--nodes={ranks.nodes}", f"--ntasks={ranks.count}"),
        *(f"--ntasks-per-node={ranks.devices}", "--distribution=block"),
        *(f"--cpus-per-task={ranks.cpus}", "--export=ALL"),
        *(*own, str(ranks.devices), *command),
    ]


def distributed(environ: Mapping[str, str], devices: str) -> dict[str, str]:
    """RANK and its like, from what srun says of a process, on a node with so many devices.

    The worker, which starts srun, is on the first node, and so is rank 0. The port follows from the job's and the
    step's number: the next attempt need not wait for this one's to be free.
    """
    step = f"{environ.get('SLURM_JOB_ID', '')}.{environ.get('SLURM_STEP_ID', '')}"
    return {
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "WORLD_SIZE": environ["SLURM_NTASKS"],
        "LOCAL_WORLD_SIZE": devices,
        "MASTER_ADDR": environ.get("SLURM_LAUNCH_NODE_IPADDR") or socket.gethostname(),
        "MASTER_PORT": str(FIRST_PORT + zlib.crc32(step.encode()) % PORTS),
    }


def run_here(devices: int, command: Sequence[str]) -> int:
    """Start the command once per device of this machine; the first that fails ends the others.

    A signal to stop reaches all of the process group by itself.

    Returns
    -------
    int
        The exit code of that one, 0 where none failed.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    size = {"WORLD_SIZE": str(devices), "LOCAL_WORLD_SIZE": str(devices)}
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | meeting | size | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            preexec_fn=end_with_parent,
        )
        for rank in range(devices)
    ]
    codes = [rank.poll() for rank in ranks]
    while None in codes and not any(codes):
        time.sleep(0.02)
        codes = [rank.poll() for rank in ranks]
    code = next((code for code in codes if code), 0)
    for rank in ranks:
        rank.kill()
        rank.wait()
    return code if code >= 0 else SIGNALLED - code


def main() -> None:
    """Become the command, as one rank; or start all of them."""
    if sys.argv[1] == "--here":
        raise SystemExit(run_here(int(sys.argv[2]), sys.argv[3:]))
    devices, *command = sys.argv[1:]
    os.environ.update(distributed(os.environ, devices))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()

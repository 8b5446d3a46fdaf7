"""Runs on several devices: one process per device, with the environment that torch.distributed reads.

The worker of such a run starts ``srun ... python -m sweeps.dispatch.ranks DEVICES COMMAND``; each rank then becomes
the command.
"""

from __future__ import annotations

import os
import socket
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FIRST_PORT, PORTS = 20_000, 10_000


@dataclass(frozen=True)
class Ranks:
    """What a task with more than one device spreads a run over."""

    nodes: int
    devices: int
    """Of one node."""
    cpus: int
    """Of one device."""

    @property
    def count(self) -> int:
        """Of all nodes."""
        return self.nodes * self.devices


def spread(command: Sequence[str], ranks: Ranks) -> list[str]:
    """The command that starts ``command`` once per device of this task."""
    return [
        *("srun", "--overlap", "--kill-on-bad-exit=1", "--label"),
        # block: neighbouring ranks share a node, as torch.distributed programs take for granted
        *(f"--nodes={ranks.nodes}", f"--ntasks={ranks.count}"),
        *(f"--ntasks-per-node={ranks.devices}", "--distribution=block"),
        *(f"--cpus-per-task={ranks.cpus}", "--export=ALL"),
        *(sys.executable, "-m", "sweeps.dispatch.ranks", str(ranks.devices), *command),
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


def main() -> None:
    """Become the command, as one rank."""
    devices, *command = sys.argv[1:]
    os.environ.update(distributed(os.environ, devices))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()

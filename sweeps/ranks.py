"""Runs on several devices: one process per device, with the environment that torch.distributed reads.

The worker of such a run starts ``srun ... python -m sweeps.ranks COMMAND``; each rank then becomes the command.
"""

from __future__ import annotations

import os
import socket
import sys
import zlib
from collections.abc import Mapping, Sequence

RANKS = "ISOFLOP_RANKS"
"""Set in the worker of a task with more than one device: nodes, devices per node, CPUs per device."""
FIRST_PORT, PORTS = 20_000, 10_000


def spread(command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The command that starts ``command`` once per device of this task; unchanged where there is but one."""
    if RANKS not in environ:
        return list(command)
    nodes, devices, cpus = map(int, environ[RANKS].split())
    return [
        *("srun", "--overlap", "--kill-on-bad-exit=1", "--label"),
        # block: neighbouring ranks share a node, as torch.distributed programs take for granted
        *(f"--nodes={nodes}", f"--ntasks={nodes * devices}", f"--ntasks-per-node={devices}", "--distribution=block"),
        *(f"--cpus-per-task={cpus}", "--export=ALL"),
        *(sys.executable, "-m", "sweeps.ranks", *command),
    ]


def distributed(environ: Mapping[str, str]) -> dict[str, str]:
    """RANK and its like, from what srun says of a process.

    The worker, which starts srun, is on the first node, and so is rank 0. The port follows from the job's and the
    step's number: the next attempt need not wait for this one's to be free.
    """
    step = f"{environ.get('SLURM_JOB_ID', '')}.{environ.get('SLURM_STEP_ID', '')}"
    return {
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "WORLD_SIZE": environ["SLURM_NTASKS"],
        "LOCAL_WORLD_SIZE": environ[RANKS].split()[1],
        "MASTER_ADDR": environ.get("SLURM_LAUNCH_NODE_IPADDR") or socket.gethostname(),
        "MASTER_PORT": str(FIRST_PORT + zlib.crc32(step.encode()) % PORTS),
    }


def main() -> None:
    """Become the command, as one rank."""
    os.environ.update(distributed(os.environ))
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()

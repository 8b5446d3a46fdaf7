"""A run of our own trainer over several devices: its ranks train under the worker's lock, and rank 0 keeps the ledger.

See :mod:`trainer.distributed` for the ranks themselves. However they end, the run folder afterwards says what it would
say of a run on one device: a verdict, ``stopped`` with the worker's reason, ``lost`` where a rank was killed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence

from sweeps.dispatch.program import late_reason, run_program
from sweeps.dispatch.ranks import Ranks, spread
from trainer.errors import MachineFault
from trainer.lock import Lock
from trainer.runfolder import EXCEPTION, LOST, STOPPED, RunConfig, RunFolder
from trainer.under import Lent

GRACE_SECONDS = 300.0
"""For the checkpoint of a large model on a slow disk; a scheduler that is in a hurry kills before."""
COMPLAINT = re.compile(r"^(?:\d+: )?isoflop: (.*)")
"""How a rank says why it fails; srun puts its number before."""


class RanksFailed(Exception):
    """A rank failed, or none started."""


def train_on_ranks(
    folder: RunFolder, config: RunConfig, lock: Lock, job: str, should_stop: Callable[[], str | None], ranks: Ranks
) -> str:
    """Train the run with one process per device, and judge what they left.

    Returns
    -------
    str
        The last point's verdict, or ``stopped: <reason>``.

    Raises
    ------
    RanksFailed
        If they ended by themselves without a final record for every point, but for one that was killed.
    MachineFault
        If the disk or the machine failed.
    """
    command = spread([sys.executable, "-m", "trainer.distributed", str(folder.path)], ranks)
    lent = Lent(token=lock.token, job=job, facts=folder.facts)
    begun = len(folder.attempts())
    left = run_program(folder, command, os.environ | lent.environment(), should_stop, GRACE_SECONDS)
    attempts, points = folder.attempts()[begun:], folder.points()
    last = attempts[-1] if attempts else {}
    why = last.get("why")
    if all(point_id in points for point_id in config.recipe.point_ids):
        return str(points[config.recipe.point_ids[-1]]["verdict"])
    reason = left.stopped or late_reason(should_stop)
    if reason is not None:
        if last:
            folder.end_attempt(last["attempt"], STOPPED + reason)
        return STOPPED + reason
    if why is not None and why.startswith(STOPPED):  # a signal that only the ranks heard
        return str(why)
    if why is not None and why.startswith(f"{EXCEPTION}{MachineFault.__name__}: "):
        raise MachineFault(why.removeprefix(f"{EXCEPTION}{MachineFault.__name__}: "))
    complaint = _complaint(left.said)
    if complaint is None and last:
        folder.end_attempt(last["attempt"], LOST)
        return f"{STOPPED}a rank was killed"
    said = f", and said last: {left.said[-1][:200]}" if left.said else ""
    raise RanksFailed(complaint or f"the ranks did not start (exit code {left.code}){said}")


def _complaint(said: Sequence[str]) -> str | None:
    """What the first rank that failed said of it; None where none said anything."""
    found = (COMPLAINT.match(line) for line in said)
    return next((match[1] for match in found if match), None)

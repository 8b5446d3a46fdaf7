"""Runs trained by somebody else's program: ``trainer.command`` gets the run folder and keeps its contract.

In the command ``{folder}`` is the run folder and ``{python}`` the interpreter that isoflop runs under.

The program finds the recipe in ``config.yaml``, appends rows to ``metrics.jsonl`` and one final record per point to
``points.jsonl`` (see :mod:`trainer.runfolder`; ``trainer/examples/law_trainer.py`` does it in fifty lines). It may
find its own checkpoints in the folder when it is started again; on SIGTERM it should save one and leave.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable

from sweeps.dispatch.program import late_reason, run_program
from sweeps.dispatch.ranks import Ranks, spread
from trainer.lock import LockLost
from trainer.runfolder import RunConfig, RunFolder

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
    rows = folder.metrics()
    attempt = folder.start_attempt(job, rows[-1]["step"] + 1 if rows else 0)
    why = "the worker failed"
    try:
        environment = _environment(alone=ranks is None) | {"ISOFLOP_ATTEMPT": str(attempt)}
        left = run_program(folder, command, environment, should_stop)
        points, stopped = folder.points(), left.stopped
        if stopped is None and not points and left.code:
            stopped = late_reason(should_stop)
        if all(point_id in points for point_id in config.recipe.point_ids):
            why = str(points[config.recipe.point_ids[-1]]["verdict"])
        elif stopped is not None:
            why = f"stopped: {stopped}"
        else:
            found = "; ".join(f"one was not valid: {reason}" for reason in folder.flaws()[-1:])
            why = f"trainer.command left no final record (exit code {left.code})" + (found and f"; {found}")
            raise ExternalTrainerError(why + (f", and said last: {left.said[-1][:200]}" if left.said else ""))
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

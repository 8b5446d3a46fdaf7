"""``isoflop clean``: free the checkpoints of points that have ended, as ``trainer.keep`` says.

isoflop clean sweep=quickstart trainer.keep=none
"""

from __future__ import annotations

import shutil

from omegaconf import DictConfig

from sweeps.app import run_verb, typed
from sweeps.config import Config
from sweeps.paths import SweepFolder
from sweeps.terminal import say
from trainer.config import Keep
from trainer.errors import UserError
from trainer.files import disk_faults
from trainer.lock import Lock
from trainer.runfolder import DIVERGED, DONE, RunFolder


def free(run: RunFolder, keep: Keep) -> int:
    """Delete what ``keep`` does not want of an ended run's checkpoints; returns the bytes freed.

    Only the trainer of a run knows which of its checkpoints is the last: of an external one, all or nothing goes.
    """
    external = run.read_config().recipe.command is not None
    if keep is Keep.all or (external and keep is Keep.last):
        return 0
    before = _size(run)
    with disk_faults(run.checkpoints):
        if keep is Keep.none:
            shutil.rmtree(run.checkpoints, ignore_errors=not run.checkpoints.exists())
        else:
            from trainer import checkpoint  # imports torch

            checkpoint.free(run.checkpoints, run.run_id, keep)
    return before - _size(run)


def _size(run: RunFolder) -> int:
    return sum(path.stat().st_size for path in run.checkpoints.rglob("*") if path.is_file())


def _body(raw: DictConfig) -> int:
    config: Config = typed(raw)
    folder = SweepFolder.of(config.root, config.sweep.name)
    freed = runs = left = 0
    for run in folder.runs():
        if not run.ended() or any(record["verdict"] not in (DONE, DIVERGED) for record in run.points().values()):
            continue
        with Lock(run.path) as lock:
            if lock is None:
                continue
            try:
                freed += free(run, config.trainer.keep)
                runs += 1
            except UserError as error:
                say(f"left as it is: {error}")
                left += 1
    say(f"freed {freed / 1e6:.1f} MB in {runs} ended runs (trainer.keep={config.trainer.keep.value})")
    return int(left > 0)


HELP = """isoflop clean [sweep=NAME] trainer.keep=none|last

Free the checkpoints of done and diverged points. Losses, curves and final records stay."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()

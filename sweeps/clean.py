"""``isoflop clean``: free the checkpoints of points that are done, as ``trainer.keep`` says.

isoflop clean sweep=quickstart trainer.keep=none
"""

from __future__ import annotations

import shutil

from omegaconf import DictConfig

from sweeps.app import run_verb, typed
from sweeps.config import Config
from sweeps.paths import SweepFolder
from sweeps.render import say
from trainer.config import Keep
from trainer.files import disk_faults
from trainer.lock import Lock
from trainer.runfolder import DONE, RunFolder


def free(run: RunFolder, keep: Keep) -> int:
    """Delete what ``keep`` does not want of a done run's checkpoints; returns the bytes freed."""
    if not run.checkpoints.is_dir() or keep is Keep.all:
        return 0
    files = sorted(run.checkpoints.iterdir(), key=lambda path: path.stat().st_mtime)
    doomed = files[:-1] if keep is Keep.last else files
    freed = sum(path.stat().st_size for path in doomed)
    with disk_faults(run.checkpoints):
        for path in doomed:
            path.unlink()
        if keep is Keep.none:
            shutil.rmtree(run.checkpoints)
    return freed


def _body(raw: DictConfig) -> int:
    config: Config = typed(raw)
    folder = SweepFolder.of(config.root, config.sweep.name)
    freed = runs = 0
    for run in folder.runs():
        records = run.points().values()
        if not records or any(record["verdict"] != DONE for record in records):
            continue
        with Lock(run.path) as lock:
            if lock is not None:
                freed += free(run, config.trainer.keep)
                runs += 1
    say(f"freed {freed / 1e6:.1f} MB in {runs} done runs (trainer.keep={config.trainer.keep.value})")
    return 0


HELP = """isoflop clean [sweep=NAME] trainer.keep=none|last

Free the checkpoints of done points. Losses, curves and final records stay."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()

"""``isoflop cancel``: stop points that run, and take back those that wait. What they measured stays.

isoflop cancel sweep=quickstart
isoflop cancel sweep=quickstart point=c3e12-n12k
"""

from __future__ import annotations

from omegaconf import DictConfig

from sweeps.app import run_verb, typed
from sweeps.config import Config
from sweeps.dispatch.backlog import Backlog, read_backlog
from sweeps.dispatch.slurm import Scheduler
from sweeps.dispatch.state import PointState, State, inspect
from sweeps.dispatch.takeback import cancel_runs, drop_idle
from sweeps.paths import SweepFolder
from sweeps.planning.points import read_plan
from sweeps.status import select
from sweeps.terminal import say


def cancel(folder: SweepFolder, states: list[PointState], backlog: Backlog) -> list[str]:
    """Ask for every running or queued run among ``states`` to stop; returns their ids."""
    runs = list(dict.fromkeys(state.run_id for state in states if state.state in (State.running, State.queued)))
    cancel_runs(folder, runs)
    drop_idle(folder, backlog)
    return runs


def _body(raw: DictConfig) -> int:
    config: Config = typed(raw)
    folder = SweepFolder.of(config.root, config.sweep.name)
    backlog = read_backlog(folder, Scheduler())
    states = inspect(folder, read_plan(folder), config.limits.lost_attempts, backlog)
    runs = cancel(folder, select(states, config.point), backlog)
    for run_id in runs:
        print(run_id)  # noqa: T201
    if backlog.stale is not None:
        say(f"SLURM does not answer ({backlog.stale}): tasks that wait there leave these runs alone when they start")
    say(f"cancelled {len(runs)} runs; they checkpoint and stop within seconds, and `isoflop submit` continues them")
    return 0


HELP = """isoflop cancel [sweep=NAME] [point=ID or its beginning]

Stop running points at their next step, with a checkpoint, and take back queued ones. Submit continues them."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()

"""``isoflop status``: one table of what has become of every point. It never writes.

isoflop status sweep=quickstart watch=true
isoflop status sweep=quickstart format=json
isoflop status sweep=quickstart point=c3e11-n3.2k
"""

from __future__ import annotations

import time

from omegaconf import DictConfig

from sweeps.app import run_verb, typed
from sweeps.config import Config
from sweeps.dispatch.backlog import read_backlog
from sweeps.dispatch.slurm import Scheduler
from sweeps.dispatch.state import ENDED, PointState, State, inspect, orphans
from sweeps.paths import SweepFolder
from sweeps.planning.points import read_plan
from sweeps.render.live import live_overview
from sweeps.render.point import find_log, show_point
from sweeps.render.status import say_untold, show_status
from sweeps.sequential import goes_on, precision_line
from sweeps.terminal import say
from trainer.errors import UserError

REFRESH_SECONDS = 2.0
BETWEEN_SECONDS = 60.0
"""How long ``watch`` waits for the next batch of a sweep that goes batch by batch."""
LOGS = 5
"""Failed points whose log is named."""


def select(states: list[PointState], point: str | None) -> list[PointState]:
    """The points whose id begins with ``point``; all for None.

    Raises
    ------
    UserError
        If there is none.
    """
    chosen = [state for state in states if point is None or state.point_id.startswith(point)]
    if not chosen:
        raise UserError(f"point={point} begins no point's id in this sweep's plan; `isoflop status` lists them.")
    return chosen


def _body(raw: DictConfig) -> int:
    config: Config = typed(raw)
    folder = SweepFolder.of(config.root, config.sweep.name)
    scheduler = Scheduler()

    def now() -> tuple[list[PointState], str | None]:
        plan = read_plan(folder)  # a sweep that goes batch by batch grows
        backlog = read_backlog(folder, scheduler)
        return select(inspect(folder, plan, config.limits.lost_attempts, backlog), config.point), backlog.stale

    states, stale = now()
    if config.watch:
        patience, ended = (BETWEEN_SECONDS if goes_on(config) else 0.0), time.monotonic()
        with live_overview(folder, config) as show:
            while True:
                if not all(state.state in ENDED for state in states):
                    ended = time.monotonic()
                elif time.monotonic() - ended >= patience:
                    break
                show(states)
                time.sleep(REFRESH_SECONDS)
                states, stale = now()
    if config.point is not None and len(states) == 1:
        show_point(folder, states[0], config.format)
    else:
        show_status(folder, states, [run.run_id for run in orphans(folder, read_plan(folder))], config.format, stale)
        for state in [state for state in states if state.state is State.failed][:LOGS]:
            say(f"{state.point_id} failed, log: {find_log(folder, folder.run(state.run_id))}")
        precision = precision_line(config, folder)
        if precision is not None:
            say(f"precision so far: {precision}")
    say_untold(folder, states)
    if stale is not None:
        say(f"SLURM does not answer ({stale}): what is queued may have changed, what has run is as shown")
    return 1 if any(state.state is State.failed for state in states) else 0


HELP = """isoflop status [sweep=NAME] [point=ID] [watch=true] [format=json]

What has become of every point: done, running, queued, planned, failed with its cause, diverged. Never writes.
watch=true shows it live: progress by budget, losses of what runs, the fit so far, spent against planned.
With point= that fits one point: its attempts, the end of its log, and where they lie.
Exit code 1 if a point failed."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()

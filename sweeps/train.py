"""``isoflop train``: one point, here, in this process: what a worker executes, and how to debug it.

isoflop train sweep=quickstart point=c3e11-n3.2k
"""

from __future__ import annotations

import signal
from types import FrameType

from omegaconf import DictConfig

from sweeps.app import INTERRUPTED, complain, run_verb, typed
from sweeps.config import Config
from sweeps.dispatch.backlog import read_backlog
from sweeps.dispatch.execute import execute
from sweeps.dispatch.ranks import here
from sweeps.dispatch.reconcile import check_devices, open_run
from sweeps.dispatch.slurm import Scheduler
from sweeps.dispatch.state import PointState, inspect
from sweeps.paths import SweepFolder
from sweeps.planning.planner import make_plan
from sweeps.planning.points import write_plan
from sweeps.render.status import live, show_status
from sweeps.status import select
from trainer.errors import MachineFault, UserError
from trainer.mirror import Mirror
from trainer.runfolder import FAILED


def _body(raw: DictConfig) -> int:
    config: Config = typed(raw)
    plan = make_plan(raw)
    folder = SweepFolder.of(config.root, plan.sweep)
    write_plan(plan, folder)

    scheduler = Scheduler()

    def states() -> list[PointState]:
        backlog = read_backlog(folder, scheduler)
        return select(inspect(folder, plan.to_dict(), config.limits.lost_attempts, backlog), config.point)

    chosen = states()
    if config.point is None or len(chosen) > 1:
        some = ", ".join(state.point_id for state in chosen[:4])
        raise UserError(f"point={config.point} fits {len(chosen)} points; name one, such as {some}.")
    point = next(point for point in plan.points if point.point_id == chosen[0].point_id)
    check_devices(config, [point])
    run = folder.run(point.run.run_id)
    interrupted: list[int] = []

    def once(number: int, frame: FrameType | None) -> None:
        interrupted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait for a checkpoint

    signal.signal(signal.SIGINT, once)
    with live(folder) as show:

        def should_stop() -> str | None:
            show(states())
            return "interrupted" if interrupted else None

        def prepare() -> None:
            open_run(run, point.run, retry=True)

        mirror = Mirror(folder.path)
        try:
            verdict = execute(run, "train", should_stop, mirror, prepare, here(config.device.per_run))
        finally:
            mirror.close(hurry=bool(interrupted))
    if interrupted:
        return complain(f"interrupted; the same command continues {run.run_id}", INTERRUPTED)
    if verdict is None:
        raise MachineFault(f"another process is training {run.run_id}; `isoflop status` shows it.")
    show_status(folder, states(), [], config.format)
    return 1 if verdict.startswith(FAILED) else 0


HELP = """isoflop train [sweep=NAME] point=ID or its beginning [key=value ...]

Train one point of a sweep in this process (continuing it if it was begun)."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()

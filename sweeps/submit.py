"""``isoflop submit``: bring what is wanted and what is there together; start workers for the rest, nothing else.

isoflop submit sweep=quickstart
isoflop submit sweep=quickstart cluster=slurm cluster.partition=gpu
isoflop submit sweep=quickstart retry=oom
"""

from __future__ import annotations

from omegaconf import DictConfig

from sweeps.app import again, run_verb, typed
from sweeps.config import Config, Retry
from sweeps.dispatch.backlog import read_backlog
from sweeps.dispatch.reconcile import submit
from sweeps.dispatch.slurm import Scheduler
from sweeps.dispatch.state import ENDED, PointState, inspect
from sweeps.paths import SweepFolder
from sweeps.planning.planner import make_plan
from sweeps.planning.points import Plan
from sweeps.render.plan import say_refused
from sweeps.render.status import show_submission
from sweeps.sequential import WAITS, further, goes_on, has_ended
from sweeps.terminal import say


def _body(raw: DictConfig) -> int:
    config: Config = typed(raw)
    plan = make_plan(raw)
    scheduler, folder = Scheduler(), SweepFolder.of(config.root, plan.sweep)
    if goes_on(config):
        states = _states(config, plan, folder, scheduler)
        if has_ended(states):
            plan = further(raw, config, folder, plan, say) or plan
        elif config.retry is Retry.none and all(state.state in ENDED for state in states):
            say(WAITS)
    say_refused(plan)
    submission = submit(config, plan, scheduler)
    show_submission(submission, config.format)
    if submission.submitted:
        say(f"watch it with `{again('status', 'watch=true')}`")
    return 0


def _states(config: Config, plan: Plan, folder: SweepFolder, scheduler: Scheduler) -> list[PointState]:
    backlog = read_backlog(folder, scheduler)
    return inspect(folder, plan.to_dict(), config.limits.lost_attempts, backlog)


HELP = """isoflop submit [sweep=NAME] [retry=oom|timeout|all] [cancel_left=true] [confirm=true] [key=value ...]

Start workers for the points that are not done, running or queued, and return at once. Safe to repeat: where a design
goes batch by batch (sweep.target.half_width), a submit after the last batch has ended starts the next one."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()

"""``isoflop submit``: bring what is wanted and what is there together; start workers for the rest, nothing else.

isoflop submit sweep=quickstart
isoflop submit sweep=quickstart cluster=slurm cluster.partition=gpu
isoflop submit sweep=quickstart retry=oom
"""

from __future__ import annotations

from omegaconf import DictConfig

from sweeps.app import again, run_verb, typed
from sweeps.config import Config
from sweeps.planner import make_plan
from sweeps.reconcile import submit
from sweeps.render import say, say_refused, show_submission
from sweeps.slurm import Scheduler


def _body(raw: DictConfig) -> int:
    config: Config = typed(raw)
    plan = make_plan(raw)
    say_refused(plan)
    submission = submit(config, plan, Scheduler())
    show_submission(submission, config.format)
    if submission.submitted:
        say(f"watch it with `{again('status', 'watch=true')}`")
    return 0


HELP = """isoflop submit [sweep=NAME] [retry=oom|timeout|all] [cancel_left=true] [confirm=true] [key=value ...]

Start workers for the points that are not done, running or queued, and return at once. Safe to repeat."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()

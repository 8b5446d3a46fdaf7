"""``isoflop plan``: the sweep resolved into a table, before anything is submitted.

isoflop plan sweep=quickstart
isoflop plan sweep=chinchilla format=json
"""

from __future__ import annotations

from omegaconf import DictConfig

from sweeps.app import run_verb
from sweeps.paths import SweepFolder
from sweeps.planner import make_plan
from sweeps.points import write_plan
from sweeps.render import show_plan


def _body(config: DictConfig) -> int:
    plan = make_plan(config)
    folder = SweepFolder.of(config.root, plan.sweep)
    write_plan(plan, folder)
    show_plan(plan, config.format, folder)
    return 0


HELP = """isoflop plan [sweep=NAME] [key=value ...]

Print and write the plan: every point with its size, tokens, batch, learning rate, FLOPs, memory, hours and price.
Nothing is trained."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()

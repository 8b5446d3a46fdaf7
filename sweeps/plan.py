"""``isoflop plan``: the sweep resolved into a table, before anything is submitted.

isoflop plan sweep=quickstart
isoflop plan sweep=chinchilla format=json
isoflop plan sweep=chinchilla forecast=true forecast.targets=[5.76e23]
isoflop plan sweep=chinchilla sweep.design=optimal sweep.target.flops=5.76e23 sweep.limit.flops=5e21 report=true
"""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from sweeps.app import run_verb, typed
from sweeps.config import Config, Format
from sweeps.paths import SweepFolder
from sweeps.planning.planner import make_plan
from sweeps.planning.points import write_plan
from sweeps.render.plan import show_plan
from sweeps.terminal import progress_line, say


def _body(config: DictConfig) -> int:
    plan = make_plan(config)
    base: Config = typed(config)
    folder = SweepFolder.of(base.root, plan.sweep)
    outlook = None
    if base.forecast.on or base.report:
        from sweeps.planning.forecast import foretell  # here, because it takes scipy half a second

        with progress_line() as report:
            outlook = foretell(base, plan, folder, report)
        plan = replace(plan, forecast=outlook.to_dict())
    write_plan(plan, folder)
    show_plan(plan, base.format, folder)
    if plan.design is not None and base.format is Format.table:
        from sweeps.suggest import design_text

        for number, batch in enumerate(plan.design["batches"], start=1):
            if "targets" in batch:
                say(f"batch {number}: {design_text(batch)}")
    if outlook is not None and base.format is Format.table:
        from sweeps.render.forecast import show_forecast

        show_forecast(outlook)
    if outlook is not None and base.report:
        from sweeps.render.plan_report import write_pictures

        say(f"written: {write_pictures(base, plan, outlook, folder)}")
    return 0


HELP = """isoflop plan [sweep=NAME] [forecast=true] [key=value ...]

Print and write the plan: every point with its size, tokens, batch, learning rate, FLOPs, memory, hours and price.
Nothing is trained. With forecast=true also the intervals that fits of it may be expected to give, and what each budget
adds to cost and precision: forecast.targets=[C,...] says where, forecast.prior or law= from what, forecast.noise how
loud. report=true writes plan.html with pictures of both."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()

"""``isoflop suggest``: the points that would tell most next, by what is done; with ``write=true`` they join the sweep.

isoflop suggest sweep=ours sweep.design=optimal sweep.target.flops=1e24 sweep.limit.flops=1e21
isoflop suggest sweep=ours ... write=true
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from analysis.text import count_text, flops_text, within_text
from sweeps.app import again, run_verb, typed
from sweeps.config import Config, Design, Format
from sweeps.paths import SweepFolder
from sweeps.planning.axes import expand
from sweeps.planning.begun import known
from sweeps.planning.chosen import Batch, Chosen, read_chosen, write_chosen
from sweeps.planning.cost import Experience
from sweeps.planning.optimal import next_batch
from sweeps.planning.planner import pinned_corpus, pinned_dtype
from sweeps.planning.precision import Reached, precision_so_far
from sweeps.planning.recipes import check_rules
from sweeps.planning.workbench import Workbench
from sweeps.sequential import NO_FURTHER
from sweeps.terminal import print_json, progress_line, say, stdout, table
from trainer.errors import MachineFault, UserError


def suggest(raw: DictConfig) -> tuple[Workbench, Chosen | None, Chosen, Batch]:
    """The next batch, after what design.json holds and what of that stays; nothing is written but a missing corpus.

    Raises
    ------
    UserError
        If the design is not optimal, or as :func:`sweeps.planning.optimal.choose`.
    """
    base: Config = typed(raw)
    if base.sweep.design is not Design.optimal:
        raise UserError(
            f"sweep.design={base.sweep.design.value} has all its points; suggest needs sweep.design=optimal with "
            "sweep.target.flops=<C> and sweep.limit.flops=<FLOPs>."
        )
    folder = SweepFolder.of(base.root, base.sweep.name)
    _, config = expand(raw)[0]
    check_rules(config)
    config.model.dtype = pinned_dtype(config, folder)
    corpus = pinned_corpus(config.data, folder)
    bench = Workbench.of(config, folder, corpus, Experience.of(folder, config.device))
    found = read_chosen(folder)
    there = known(bench, found)
    with progress_line() as report:
        return bench, found, there, next_batch(replace(bench, tell=report), there)


def _body(raw: DictConfig) -> int:
    config: Config = typed(raw)
    bench, found, chosen, batch = suggest(raw)
    reached = precision_so_far(bench.config, bench.folder)
    if config.format is Format.json:
        print_json(as_dict(chosen, batch, reached))
    else:
        show(batch)
    if reached is not None:
        say(f"so far: {reached.text}")
    if not batch.points:
        say(f"{NO_FURTHER} to go on")
    elif config.write:
        longer = replace(chosen, batches=(*chosen.batches, batch))
        if write_chosen(bench.folder, longer, found) is not longer:
            raise MachineFault("another command has chosen points meanwhile, so these are not written; suggest again.")
        say(f"written: {bench.folder.path / 'design.json'}; `{again('submit')}` trains them")
    else:
        say("nothing is written; write=true adds them to the sweep, sweep.excluded=[...] leaves some out")
    return 0


def as_dict(chosen: Chosen, batch: Batch, reached: Reached | None) -> dict[str, Any]:
    """For programs."""
    entry = Chosen(key="", batches=[batch]).to_dict()["batches"][0]
    return {
        "batch": len(chosen.batches) + 1,
        "suggested": entry.pop("points"),
        "facts": entry,
        "reached": None if reached is None else reached.to_dict(),
    }


def show(batch: Batch) -> None:
    """The points as a table, and what they are worth."""
    shown = table("L x d", "tokens", "budget", "seeds", "<role", title="Suggested next")
    for point in batch.points:
        seeds = ",".join(map(str, point.seeds))
        size = f"{point.layers}x{point.d_model}"
        shown.add_row(size, count_text(point.tokens), flops_text(point.budget), seeds, point.role)
    stdout().print(shown)
    if batch.points:
        stdout().print(design_text(batch.facts), soft_wrap=True)


def design_text(facts: Mapping[str, Any]) -> str:
    """What a batch costs and promises, in a line."""
    told = ", ".join(
        f"{name} known to {within_text(error)}" for name, error in zip(facts["targets"], facts["errors"], strict=True)
    )
    before = f" after {facts['spent_before']:.3g}" if facts["spent_before"] else ""
    return (
        f"{facts['runs']} runs of {facts['candidates']} possible ones, {facts['spent']:.3g} {facts['unit']}{before} of "
        f"{facts['limit']:.3g}; with all before: {told} (one standard error), at {facts['efficiency']:.0%} or more of "
        f"what any choice could give"
    )


HELP = """isoflop suggest sweep.design=optimal sweep.target.flops=C sweep.limit.flops=FLOPS [write=true] [key=value ...]

The next batch of points: those that tell most of the target for what they cost, given what is done. The results' own
law is the prior once they determine one; until then law=, forecast.prior or sweep.centre is.
write=true adds them to the sweep, so that plan, submit and run take them; else nothing is written."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("config", _body, HELP)


if __name__ == "__main__":
    main()

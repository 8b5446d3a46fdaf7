"""From a config to a plan: axes x design x seeds, each point a recipe with its cost, or a refusal with its reason."""

from __future__ import annotations

import importlib.metadata
import math
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from analysis.laws.law import Law, find_law, law_from_config
from sweeps.app import config_dirs, typed
from sweeps.config import Config, Design
from sweeps.paths import SweepFolder
from sweeps.planning.axes import expand
from sweeps.planning.chosen import Chosen
from sweeps.planning.cost import Experience, memory_of, total_seconds
from sweeps.planning.design import Target, targets
from sweeps.planning.packing import runs_together
from sweeps.planning.points import Plan, PlannedPoint
from sweeps.planning.recipes import check_rules, make_runtime, precision
from sweeps.planning.trunks import Runs, budget_error, grouped, horizon_of, seeds
from sweeps.terminal import progress_line
from trainer.config import DataConfig, DeviceConfig, Precision, Source, plain
from trainer.corpus import CorpusFacts, corpus_key, open_corpus, prepare_corpus, unspecified_corpus
from trainer.errors import UserError
from trainer.recipe import Horizon, check_split
from trainer.runfolder import RunConfig


def make_plan(config: DictConfig, *, after: int | None = None) -> Plan:
    """Resolve a config into a plan; makes the corpus if the root has none yet, and pins it to the sweep.

    Parameters
    ----------
    after
        Of an optimal design that goes batch by batch: choose a further batch after this many.

    Raises
    ------
    UserError
        If a field is wrong, a size is off the ladder, the corpus is too small, or no point is left.
    """
    base: Config = typed(config)
    folder = SweepFolder.of(base.root, base.sweep.name)
    experience = Experience.of(folder, base.device)
    points: dict[str, PlannedPoint] = {}
    refused = []
    chosen: Chosen | None = None  # once, for all combinations of the axes
    for axes, varied in expand(config):
        check_rules(varied)
        varied.model.dtype = pinned_dtype(varied, folder)
        corpus = pinned_corpus(varied.data, folder)
        law = None if varied.law.name is None else law_from_config(varied.law)
        if varied.sweep.design is Design.optimal:
            from sweeps.planning.optimal import choose  # these here, because they take scipy half a second
            from sweeps.planning.workbench import Workbench

            seeds(varied)
            bench = Workbench.of(varied, folder, corpus, experience)
            if chosen is None:
                with progress_line() as report:
                    chosen = choose(replace(bench, tell=report), after=after)
            batches = chosen.targets(bench.shapes)
        else:
            batches = [_wanted(varied, corpus)]
        runs: Runs = {}
        for batch in batches:  # points of several batches share no trunk: a run that has begun stays what it is
            made, unfit = grouped(varied, batch, corpus.id)
            runs |= made
            refused += [_refused_row(target, seed, axes, reason) for target, seed, reason in unfit]
        for target, seed in ((target, seed) for batch in batches for target in batch for seed in seeds(varied)):
            if (target, seed) not in runs:
                continue
            recipe, asked = runs[target, seed]
            if recipe.command is None:
                check_split(recipe, varied.device.per_run)
            _check_epochs(varied, recipe.tokens, corpus)
            run = RunConfig(
                sweep=base.sweep.name,
                recipe=recipe,
                runtime=make_runtime(varied, recipe, experience),
                budget=asked[recipe.steps],
                budgets=tuple(asked[horizon.steps] for horizon in recipe.horizons) if recipe.branches else (),
                axes=axes,
                provenance=provenance(),
            )
            planned = _planned_point(varied, run, horizon_of(recipe, target), target, experience, law)
            if planned.point_id in points:
                raise UserError(
                    f"sweep: two points are the same run, {planned.point_id}; let every axis of sweep.axes "
                    f"({', '.join(axes) or 'none'}) change what is trained, and name no point twice."
                )
            points[planned.point_id] = planned
    if not points:
        first = refused[0]["reason"] if refused else "the design is empty"
        raise UserError(f"sweep={base.sweep.name}: no point is left of {len(refused)}; the first was refused: {first}")
    design = None if chosen is None else chosen.to_dict()
    packed = _packed(points.values(), base.device, experience)
    return Plan(sweep=base.sweep.name, points=packed, refused=refused, design=design)


def _packed(points: Iterable[PlannedPoint], device: DeviceConfig, experience: Experience) -> list[PlannedPoint]:
    """The points with how many runs like theirs share a device."""
    points = list(points)
    together = runs_together((point.run for point in points), device, experience)
    return [
        replace(
            point,
            run=replace(point.run, runtime=replace(point.run.runtime, together=together[point.run.run_id])),
        )
        for point in points
    ]


def _wanted(config: Config, corpus: CorpusFacts) -> list[Target]:
    """The points of a design that needs no choosing."""
    return targets(
        config.sweep,
        config.model,
        vocabulary=corpus.vocabulary,
        sequence=config.data.sequence,
        law=lambda name: find_law(name, config_dirs()),
    )


def _planned_point(
    config: Config, run: RunConfig, horizon: Horizon, target: Target, experience: Experience, law: Law | None
) -> PlannedPoint:
    """A point with what it will cost: of its run, the part that its own updates make."""
    recipe, device = run.recipe, config.device
    share = horizon.own / recipe.updates
    hours = share * total_seconds(run, experience.flops_per_second(recipe, device)) / 3600
    memory_gb = memory_of(run, experience, device) / 1e9
    return PlannedPoint(
        horizon=horizon,
        run=run,
        budget_error=budget_error(recipe, horizon, target),
        predicted_loss=law.loss(recipe.model.params(law.params), horizon.tokens) if law else None,
        hours=hours,
        price=hours * device.price_per_hour,
        memory_gb=memory_gb * device.per_run,
        devices=max(math.ceil(memory_gb / device.memory_gb), device.per_run),
    )


def pinned_corpus(data: DataConfig, folder: SweepFolder) -> CorpusFacts:
    """The sweep's corpus for these settings: the pinned one, or else one found or made now, and pinned."""
    if data.source is Source.unspecified:
        return unspecified_corpus(data)
    pins = folder.read_pins()
    key = corpus_key(data)
    if key in pins:
        corpus = open_corpus(folder.root, pins[key])
        corpus.check_windows(sequence=data.sequence, eval_windows=data.eval_windows)
    else:
        with progress_line() as report:
            corpus = prepare_corpus(data, folder.root, report)
        folder.write_pins({**pins, key: corpus.id})
    return CorpusFacts(id=corpus.id, vocabulary=corpus.vocabulary, train_tokens=corpus.train_tokens)


def pinned_dtype(config: Config, folder: SweepFolder) -> Precision:
    """``auto`` made definite once for a sweep and kind of device, on whatever machine it is planned later."""
    if config.model.dtype is not Precision.auto:
        return config.model.dtype
    pins, key = folder.read_pins(), f"dtype-{config.device.kind.value}"
    if key not in pins:
        pins[key] = precision(config.model.dtype, config.device.kind).value
        folder.write_pins(pins)
    return Precision(pins[key])


@cache
def provenance() -> dict[str, Any]:
    """The git commit of the code, and the versions that decide a run's bits."""
    return {"git": _git_commit(), "versions": {name: _version(name) for name in ("isoflop", "torch", "numpy")}}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=here, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _check_epochs(config: Config, tokens: int, corpus: CorpusFacts) -> None:
    if tokens > config.data.max_epochs * corpus.train_tokens:
        raise UserError(
            f"a point needs {tokens:.4g} tokens, but the corpus {corpus.id} holds {corpus.train_tokens:.4g} and "
            f"data.max_epochs={config.data.max_epochs:g}; lower sweep.budgets (or tokens), drop small sizes, "
            f"or allow data.max_epochs={math.ceil(tokens / corpus.train_tokens)}."
        )


def _refused_row(target: Target, seed: int, axes: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return {
        "budget": target.budget,
        "layers": target.shape.layers,
        "d_model": target.shape.d_model,
        "params_non_embedding": target.shape.params_non_embedding,
        "tokens": target.tokens,
        "seed": seed,
        "axes": plain(dict(axes)),
        "reason": reason,
    }

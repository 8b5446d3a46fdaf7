"""What an optimal design chooses from: shapes of the ladder at budgets or horizons, each with its price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.fitting.optimum import optimum
from analysis.fitting.values import Bools, Floats
from analysis.planning.candidates import Candidates
from sweeps.config import Config
from sweeps.paths import SweepFolder
from sweeps.planning.axes import combinations
from sweeps.planning.cost import Experience, memory_of, total_seconds
from sweeps.planning.design import Target, numbers
from sweeps.planning.forecast import cost_of
from sweeps.planning.ladder import pick
from sweeps.planning.prior import Prior
from sweeps.planning.recipes import make_recipe, make_runtime
from sweeps.planning.trunks import refusal, shares_trunks
from trainer.corpus import CorpusFacts
from trainer.errors import UserError
from trainer.recipe import Recipe
from trainer.runfolder import RunConfig
from trainer.shape import ParamCount, Shape

BUDGETS, REACH = 24, 1000.0
"""Budgets to choose from, evenly in log C, and the factor that they span, where the sweep lists none."""
SIZE_STEP = 1.12
"""Between neighbouring sizes to choose from, where the sweep lists none."""
MOST_SIZES = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Points that could be trained; all of one length."""

    targets: Sequence[Target]
    recipes: Sequence[Recipe]
    """Of the sweep's first seed, each a run of its own."""
    hours: Floats
    memory_gb: Floats
    """Of a run, on all its devices together."""
    trunks: bool
    """Whether points of one shape share a run up to their cooldowns."""

    def __len__(self) -> int:
        return len(self.targets)

    def ids(self) -> list[str]:
        """Of the points with the sweep's first seed."""
        return [recipe.run_id for recipe in self.recipes]

    def candidates(self, params: ParamCount, *, by_hours: bool) -> Candidates:
        """As the design takes them, N counted as ``params``."""
        rows = [(recipe.model.params(params), recipe.tokens, recipe.flops()) for recipe in self.recipes]
        n, d, c = np.array(rows, dtype=np.float64).reshape(-1, 3).T.copy()
        price = self.hours if by_hours else c
        if not self.trunks:
            return Candidates(params=n, tokens=d, flops=c, price=price)
        share = np.array([recipe.schedule.cooldown_steps / recipe.steps for recipe in self.recipes])
        numbers: dict[Shape, int] = {}
        group = np.array([numbers.setdefault(recipe.model, len(numbers)) for recipe in self.recipes], dtype=np.int64)
        own, shared = share * price, (1 - share) * price
        return Candidates(params=n, tokens=d, flops=c, price=own, trunk=shared, group=group)


def flops_limit(config: Config) -> float:
    """The cost limit in FLOPs, of device-hours what the device makes of them, for one combination of ``sweep.axes``.

    Raises
    ------
    UserError
        If not exactly one limit is stated, or it is no positive number.
    """
    limit, share = config.sweep.limit, 1 / combinations(config.sweep.axes)
    if (limit.flops is None) == (limit.device_hours is None):
        raise UserError(
            f"sweep.limit has flops={limit.flops} and device_hours={limit.device_hours}; an optimal design needs one "
            "of them, e.g. sweep.limit.flops=1e21."
        )
    if limit.flops is not None:
        return share * numbers("sweep.limit.flops", [limit.flops])[0]
    hours = share * numbers("sweep.limit.device_hours", [limit.device_hours])[0]
    return hours * 3600 * config.device.flops_per_second * config.device.utilisation


def find_pool(
    config: Config, shapes: Sequence[Shape], corpus: CorpusFacts, prior: Prior, experience: Experience
) -> Pool:
    """Every point that the settings allow and the trainer can make.

    Raises
    ------
    UserError
        If nothing is left, or a setting is out of range.
    """
    sizes = _sizes(config, shapes, prior)
    if config.sweep.horizons:
        tokens = numbers("sweep.horizons", config.sweep.horizons)
        wanted = [Target(shape, float(each)) for shape in sizes for each in tokens]
    else:
        wanted = [
            Target(shape, budget / shape.flops_per_token(), budget) for budget in budgets(config) for shape in sizes
        ]
    return pool_of(config, wanted, corpus, experience)


def pool_of(config: Config, wanted: Sequence[Target], corpus: CorpusFacts, experience: Experience) -> Pool:
    """Those of the wanted points that the plan would not refuse."""
    kept: dict[str, tuple[Target, Recipe, float, float]] = {}
    seed = config.sweep.seeds[0] if config.sweep.seeds else 0
    speeds: dict[tuple[Shape, int], float] = {}
    for target in wanted:
        recipe = make_recipe(config, target.shape, [target.tokens], seed, corpus.id)
        if _why_not(config, recipe, target, corpus) is not None:
            continue
        run = RunConfig(sweep=config.sweep.name, recipe=recipe, runtime=make_runtime(config, recipe, experience))
        alike = recipe.model, recipe.optim.batch
        if alike not in speeds:
            speeds[alike] = experience.flops_per_second(recipe, config.device)
        memory = memory_of(run, experience, config.device) * config.device.per_run / 1e9
        kept.setdefault(recipe.run_id, (target, recipe, total_seconds(run, speeds[alike]) / 3600, memory))
    targets, recipes, hours, memory_gb = zip(*kept.values(), strict=True) if kept else ((), (), (), ())
    trunks = shares_trunks(config)
    return Pool(targets=targets, recipes=recipes, hours=np.array(hours), memory_gb=np.array(memory_gb), trunks=trunks)


def _why_not(config: Config, recipe: Recipe, target: Target, corpus: CorpusFacts) -> str | None:
    """Why the plan would refuse a point; None where it would not."""
    most = config.data.max_epochs * corpus.train_tokens
    if recipe.tokens > most:
        return f"it takes {recipe.tokens:.4g} tokens, and data.max_epochs={config.data.max_epochs:g} gives {most:.4g}"
    return refusal(config, recipe, target)


def forbidden(config: Config, pool: Pool, folder: SweepFolder, *, first: bool) -> dict[str, Bools]:
    """By setting, (n,): points that it rules out and the design itself does not know of.

    Parameters
    ----------
    folder
        Where the sweep's runs lie, whose ids may be excluded as well.
    first
        Whether an exclusion that names nothing is refused: later on, what it named may be no candidate any more.

    Raises
    ------
    UserError
        If an exclusion names nothing, or no point is small enough.
    """
    wanted, per_run = config.sweep.allowed, config.device.per_run
    device = config.device.memory_gb * per_run if config.trainer.command is None else math.inf
    out = {}
    for name, most in (("device.memory_gb", device), ("sweep.allowed.memory_gb", wanted.memory_gb or math.inf)):
        out[f"{name}={most:g}"] = pool.memory_gb > most
        if out[f"{name}={most:g}"].all():
            raise UserError(
                f"{name}={most:g} holds none of the {len(pool)} points to choose from; the smallest needs "
                f"{pool.memory_gb.min():.3g} GB."
            )
    shapes = [recipe.model for recipe in pool.recipes]
    size = np.array([shape.params_non_embedding for shape in shapes])
    ratio = np.array([r.tokens / shape.params_total for r, shape in zip(pool.recipes, shapes, strict=True)])
    for name, values in (("params", size), ("tokens_per_param", ratio)):
        stated = getattr(wanted, name)
        low, high = ends(f"sweep.allowed.{name}", stated)
        out[f"sweep.allowed.{name}={stated}"] = (values < low) | (values > high)
    if config.sweep.excluded:
        named = [_named(config, entry, pool, folder, first=first) for entry in config.sweep.excluded]
        out["sweep.excluded"] = np.logical_or.reduce(named)
    return out


def is_excluded(config: Config, recipe: Recipe, tokens: float, names: Sequence[str]) -> bool:
    """Whether a point is excluded by hand.

    Parameters
    ----------
    tokens
        The point's, of a run that may give several.
    names
        The point's ids.
    """
    size = recipe.model.params_non_embedding
    for entry in config.sweep.excluded:
        if isinstance(entry, str) and entry:
            if any(name.startswith(entry) for name in names):
                return True
        elif isinstance(entry, dict) and entry and entry.keys() <= {"params", "tokens"}:
            inside = []
            for name, values in entry.items():
                low, high = ends(f"sweep.excluded: {name}", values)
                inside.append(low <= (size if name == "params" else tokens) <= high)
            if all(inside):
                return True
        else:
            raise UserError(
                f"sweep.excluded holds {entry!r}; give the beginning of a point's id, or a mapping such as "
                "{params: [1e6, 2e6]}."
            )
    return False


def _named(config: Config, entry: object, pool: Pool, folder: SweepFolder, *, first: bool) -> Bools:
    """(n,): the points that one exclusion names, with any of the sweep's seeds."""
    alone = replace(config, sweep=replace(config.sweep, excluded=[entry]))
    seeds = config.sweep.seeds if isinstance(entry, str) else ()
    ids = [[replace(recipe, seed=seed).run_id for seed in seeds] for recipe in pool.recipes]
    found = np.array([is_excluded(alone, r, r.tokens, own) for r, own in zip(pool.recipes, ids, strict=True)])
    if not first or not isinstance(entry, str) or found.any():
        return found
    if not any(run.run_id.startswith(entry.partition("@")[0]) for run in folder.runs()):
        raise UserError(
            f"sweep.excluded holds {entry!r}, with which none of the {len(ids)} candidates' ids begins; they look "
            f"like {ids[0][0]}. A point of a trunk is named by its numbers: {{params: [1e6, 2e6], tokens: [1e9, 2e9]}}."
        )
    return found


def pinned(config: Config, shapes: Sequence[Shape], corpus: CorpusFacts) -> list[Target]:
    """The points that the user wants whatever they are worth.

    Raises
    ------
    UserError
        If an entry is no point, or one that cannot be trained.
    """
    wanted = []
    for entry in config.sweep.pinned:
        if not isinstance(entry, dict) or entry.keys() != {"params", "tokens"}:
            raise UserError(f"sweep.pinned holds {entry!r}; give mappings such as {{params: 1e8, tokens: 2e9}}.")
        size, tokens = (numbers(f"sweep.pinned: {name}", [entry[name]])[0] for name in ("params", "tokens"))
        target = Target(pick(shapes, [size], config.model)[0], tokens)
        recipe = make_recipe(config, target.shape, [tokens], config.sweep.seeds[0], corpus.id)
        if (why := _why_not(config, recipe, target, corpus)) is not None:
            raise UserError(f"sweep.pinned: params={size:g}, tokens={tokens:g} cannot be trained: {why}.")
        wanted.append(target)
    return wanted


def budgets(config: Config) -> list[float]:
    """Budgets to choose from: the sweep's own, else evenly below a third of the limit."""
    if config.sweep.budgets:
        return numbers("sweep.budgets", config.sweep.budgets)
    most = flops_limit(config) / 3
    return [float(f"{budget:.3g}") for budget in np.geomspace(most / REACH, most, BUDGETS)]


def ends(name: str, values: object) -> tuple[float, float]:
    """A range as [least, most]; empty for any."""
    if not isinstance(values, list | tuple) or len(values) not in (0, 2):
        raise UserError(f"{name}={values!r} must be [least, most], or empty for any.")
    if not values:
        return 0.0, math.inf
    low, high = (float(value) if isinstance(value, int | float) else math.nan for value in values)
    if not low <= high:
        raise UserError(f"{name}={values!r} must be two numbers, the smaller one first.")
    return low, high


def _sizes(config: Config, shapes: Sequence[Shape], prior: Prior) -> list[Shape]:
    """The listed sizes; else the ladder, thinned, as far as the window reaches at any budget."""
    if not isinstance(config.sweep.sizes, int):
        return pick(shapes, numbers("sweep.sizes", config.sweep.sizes), config.model)
    low, high = ends("sweep.allowed.params", config.sweep.allowed.params)
    low, high = max(low, shapes[0].params_non_embedding), min(high, shapes[-1].params_non_embedding)
    window = config.sweep.allowed.window
    if window is not None and not config.sweep.horizons:
        span = budgets(config)
        sizes = np.array([shape.params(prior.params) for shape in shapes])
        best = optimum(prior.laws, cost_of(shapes, prior.params), np.array([min(span), max(span)]))[0]
        inside = (sizes >= best[:, 0].min() / window) & (sizes <= best[:, 1].max() * window)
        kept = [shape.params_non_embedding for shape, good in zip(shapes, inside, strict=True) if good]
        if not kept:
            raise UserError(
                f"sweep.allowed.window={window:g}: no shape of the ladder ({low:.4g} to {high:.4g} parameters) lies "
                f"within it of the prior's N*, {best.min():.4g} to {best.max():.4g}; choose another model= or prior."
            )
        low, high = max(low, min(kept)), min(high, max(kept))
    if not low <= high:
        raise UserError(
            f"sweep.allowed.params={config.sweep.allowed.params} leaves no shape of the ladder, which goes from "
            f"{shapes[0].params_non_embedding:.4g} to {shapes[-1].params_non_embedding:.4g} parameters."
        )
    count = min(MOST_SIZES, 1 + round(math.log(high / low) / math.log(SIZE_STEP)))
    logs = np.log([shape.params_non_embedding for shape in shapes])
    chosen: dict[Shape, None] = {}
    for size in np.geomspace(low, high, count):
        near = np.flatnonzero(np.abs(logs - math.log(size)) <= math.log(SIZE_STEP) / 2 + 1e-9)
        if len(near):  # where the ladder is thin, there are fewer sizes
            chosen.setdefault(pick([shapes[int(i)] for i in near], [size], config.model)[0])
    return list(chosen)

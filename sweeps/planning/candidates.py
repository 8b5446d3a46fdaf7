"""What an optimal design chooses from: shapes of the ladder at budgets or horizons, each with its price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.fitting.optimum import optimum
from analysis.fitting.values import Bools, Floats
from analysis.planning.candidates import Candidates
from sweeps.config import Config
from sweeps.planning.cost import Experience, memory_of, total_seconds
from sweeps.planning.design import Target, numbers
from sweeps.planning.forecast import cost_of
from sweeps.planning.ladder import pick
from sweeps.planning.prior import Prior
from sweeps.planning.recipes import make_recipe, make_runtime
from trainer.config import Decay
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
    """The cost limit in FLOPs; of device-hours what the device makes of them.

    Raises
    ------
    UserError
        If not exactly one limit is stated, or it is no positive number.
    """
    limit = config.sweep.limit
    if (limit.flops is None) == (limit.device_hours is None):
        raise UserError(
            f"sweep.limit has flops={limit.flops} and device_hours={limit.device_hours}; an optimal design needs one "
            "of them, e.g. sweep.limit.flops=1e21."
        )
    if limit.flops is not None:
        return numbers("sweep.limit.flops", [limit.flops])[0]
    hours = numbers("sweep.limit.device_hours", [limit.device_hours])[0]
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
        off = 0.0 if target.budget is None else abs(recipe.flops() / target.budget - 1)
        if (
            recipe.steps < config.optim.min_steps
            or off > config.sweep.tolerance
            or recipe.tokens > config.data.max_epochs * corpus.train_tokens
        ):
            continue
        run = RunConfig(sweep=config.sweep.name, recipe=recipe, runtime=make_runtime(config, recipe, experience))
        alike = recipe.model, recipe.optim.batch
        if alike not in speeds:
            speeds[alike] = experience.flops_per_second(recipe, config.device)
        memory = memory_of(run, experience, config.device.per_run) / 1e9
        kept.setdefault(recipe.run_id, (target, recipe, total_seconds(run, speeds[alike]) / 3600, memory))
    targets, recipes, hours, memory_gb = zip(*kept.values(), strict=True) if kept else ((), (), (), ())
    trunks = config.schedule.decay is Decay.wsd and config.schedule.trunks
    return Pool(targets=targets, recipes=recipes, hours=np.array(hours), memory_gb=np.array(memory_gb), trunks=trunks)


def allowed(config: Config, pool: Pool) -> Bools:
    """(n,): by the settings that the design itself does not know: memory, devices, and what is excluded by hand.

    Raises
    ------
    UserError
        If an exclusion names nothing.
    """
    limit, device = config.sweep.allowed.memory_gb, config.device.memory_gb
    most = min(limit or math.inf, device if config.trainer.command is None else math.inf)
    open_ = pool.memory_gb <= most
    if not open_.any():
        raise UserError(
            f"sweep.allowed.memory_gb={most:g} holds none of the {len(pool)} points to choose from; the smallest needs "
            f"{pool.memory_gb.min():.3g} GB."
        )
    ids = pool.ids()
    for entry in config.sweep.excluded:
        if isinstance(entry, str):
            named = np.array([one.startswith(entry) for one in ids])
            if not named.any():
                raise UserError(
                    f"sweep.excluded holds {entry!r}, with which none of the {len(ids)} candidates' ids begins; they "
                    f"look like {ids[0]}."
                )
        elif isinstance(entry, dict) and entry.keys() <= {"params", "tokens"} and entry:
            named = np.ones(len(pool), dtype=np.bool_)
            for name, values in entry.items():
                low, high = ends(f"sweep.excluded: {name}", values)
                is_n = name == "params"
                column = [r.model.params_non_embedding if is_n else r.tokens for r in pool.recipes]
                named &= (np.array(column) >= low) & (np.array(column) <= high)
        else:
            raise UserError(
                f"sweep.excluded holds {entry!r}; give the beginning of a point's id, or a mapping such as "
                "{params: [1e6, 2e6]}."
            )
        open_ &= ~named
    return open_


def pinned(config: Config, shapes: Sequence[Shape]) -> list[Target]:
    """The points that the user wants whatever they are worth."""
    wanted = []
    for entry in config.sweep.pinned:
        if not isinstance(entry, dict) or entry.keys() != {"params", "tokens"}:
            raise UserError(f"sweep.pinned holds {entry!r}; give mappings such as {{params: 1e8, tokens: 2e9}}.")
        size, tokens = (numbers(f"sweep.pinned: {name}", [entry[name]])[0] for name in ("params", "tokens"))
        wanted.append(Target(pick(shapes, [size], config.model)[0], tokens))
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
        if not window > 1:
            raise UserError(f"sweep.allowed.window={window:g} must be above 1: a factor either way; null for any size.")
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

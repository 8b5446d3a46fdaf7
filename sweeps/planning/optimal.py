"""``sweep.design=optimal``: the points that pin a target best for what they cost, chosen once or batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.config import Quantity
from analysis.fitting.optimum import optimum
from analysis.fitting.values import Bools, Cost, Floats
from analysis.planning.candidates import Candidates
from analysis.planning.information import Target as Aim
from analysis.planning.information import error_factor, standard_errors
from analysis.planning.noise import Noise, contradiction
from analysis.planning.optimal import Constraints, optimal_design
from analysis.planning.optimal import Design as Solution
from sweeps.config import Config, TargetConfig
from sweeps.paths import SweepFolder
from sweeps.planning.axes import combinations
from sweeps.planning.candidates import Pool, ends, find_pool, flops_limit, forbidden, is_excluded, pinned, pool_of
from sweeps.planning.chosen import Batch, Chosen, ChosenPoint, read_chosen, settings_key, write_chosen
from sweeps.planning.cost import Experience, total_seconds
from sweeps.planning.design import Target
from sweeps.planning.forecast import cost_of
from sweeps.planning.ladder import ladder
from sweeps.planning.precision import precision_so_far
from sweeps.planning.prior import RESULTS, Prior, find_noise, find_prior, prior_of_results
from sweeps.planning.recipes import make_runtime
from sweeps.planning.results import read_results
from sweeps.planning.trunks import Runs, grouped, horizon_of
from trainer.corpus import CorpusFacts
from trainer.errors import UserError
from trainer.runfolder import DONE, RunConfig
from trainer.shape import ParamCount, Shape

FIRST = 0.1
"""Of the limit: the first batch, where a design goes batch by batch."""
GROWTH = (1.3, 2.0)
"""Of what is spent in all, from one batch to the next: by what the interval still lacks, within these."""
LEAST_RESULTS = 6
"""That may speak against a prior."""
HOPELESS = 1.0
"""A standard error, of a logarithm, with which nothing is known of a target."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """What a batch is chosen with."""

    config: Config
    folder: SweepFolder
    corpus: CorpusFacts
    experience: Experience
    shapes: Sequence[Shape]
    tell: Callable[[str, float], None] = lambda message, share: None
    """Hears what is done, and the share of it."""

    @classmethod
    def of(cls, config: Config, folder: SweepFolder, corpus: CorpusFacts, experience: Experience) -> Workbench:
        """For one combination of the sweep's axes."""
        shapes = ladder(config.model, vocabulary=corpus.vocabulary, sequence=config.data.sequence)
        return cls(config=config, folder=folder, corpus=corpus, experience=experience, shapes=shapes)

    @property
    def by_hours(self) -> bool:
        """Whether the limit is one of device-hours."""
        return self.config.sweep.limit.device_hours is not None

    @property
    def combinations(self) -> int:
        """Of the sweep's axes: the design is trained so often."""
        return combinations(self.config.sweep.axes)

    @property
    def limit(self) -> float:
        """Of all batches under one combination of the sweep's axes, in its own unit."""
        hours = self.config.sweep.limit.device_hours
        most = flops_limit(self.config)
        return hours / self.combinations if hours is not None else most

    def text(self, cost: float) -> str:
        """A cost in the limit's unit."""
        return f"{cost:.4g} {'device-hours' if self.by_hours else 'FLOPs'}"


def choose(bench: Workbench, *, after: int | None = None) -> Chosen:
    """The chosen points of a sweep, chosen and written now if there are none by these settings.

    Parameters
    ----------
    after
        Add a batch, unless another process has: the number of batches known so far. None adds none.

    Raises
    ------
    UserError
        If the settings leave nothing to choose, or the results contradict the prior.
    """
    key, found = settings_key(bench.config), read_chosen(bench.folder)
    if found is not None and found.key == key and (after is None or len(found.batches) != after):
        return found
    there = known(bench, found)
    batch = next_batch(bench, there)
    if not batch.points:
        return there
    return write_chosen(bench.folder, replace(there, batches=(*there.batches, batch)), found)


def known(bench: Workbench, found: Chosen | None) -> Chosen:
    """What has been chosen by the present settings, or was by others and has begun."""
    key = settings_key(bench.config)
    return found if found is not None and found.key == key else Chosen(key=key, batches=begun(bench, found))


def next_batch(bench: Workbench, chosen: Chosen) -> Batch:
    """What to train next, given what is chosen and what of it is done; without points where the limit allows no more.

    Raises
    ------
    UserError
        As :func:`choose`.
    """
    config = bench.config
    bench.tell("reading what is done", 0.0)
    prior, noise = _prior(bench), find_noise(config, bench.folder)
    bench.tell("listing the points to choose from", 0.1)
    aims = tuple(recounted(aims_of(config.sweep.target), bench.shapes, config.fit.params, prior.params))
    pool = find_pool(config, bench.shapes, bench.corpus, prior, bench.experience)
    runs = _runs(bench, chosen)
    spent = _cost(bench, runs)
    by_hand = pinned(config, bench.shapes, bench.corpus)
    first = not any("errors" in batch.facts for batch in chosen.batches)  # else they are what other settings left
    everything = pool_of(config, [*pool.targets, *by_hand], bench.corpus, bench.experience)
    bench.tell(f"choosing among {len(everything)} points", 0.4)
    if not len(everything):
        raise UserError(
            "sweep: no run can be made of any point to choose from; check optim.min_steps, sweep.tolerance, "
            "data.max_epochs, and sweep.budgets against sweep.limit."
        )
    candidates = everything.candidates(prior.params, by_hours=bench.by_hours)
    names = everything.ids()
    there = [target for batch in chosen.targets(bench.shapes) for target in batch]
    taken = set(pool_of(config, there, bench.corpus, bench.experience).ids())
    least = np.zeros(len(everything), dtype=np.int64)
    for name in pool_of(config, by_hand, bench.corpus, bench.experience).ids():
        least[names.index(name)] = name not in taken
    out = forbidden(config, everything, bench.folder, first=first)
    out["what is chosen already"] = np.array([name in taken for name in names])
    cost = cost_of(bench.shapes, prior.params)
    so_far = len({recipe.run_id for recipe, _ in runs.values()})
    done = _informing(bench, runs, prior.params)
    ask = _Question(bench, aims, prior, noise, candidates, cost, out, least, done, so_far)
    limit = batch_limit(bench, spent)
    solution = ask.answer(limit - spent, spent=spent, first=first)
    if solution is None:
        return Batch(points=(), facts={})
    if first:
        whole = solution if limit >= bench.limit else ask.answer(bench.limit - spent, spent=spent, first=True)
        assert whole is not None  # or it would have been refused
        ask.check_reach(whole)
    return _batch(bench, ask, everything, solution, spent)


def batch_limit(bench: Workbench, spent: float) -> float:
    """What the sweep may have cost after the next batch."""
    wanted = bench.config.sweep.target.half_width
    if wanted is None:
        return bench.limit
    if not spent:
        return FIRST * bench.limit
    reached = precision_so_far(bench.config, bench.folder)
    lacking = GROWTH[1] if reached is None else (reached.half_width / wanted) ** 2
    return min(bench.limit, spent * float(np.clip(lacking, *GROWTH)))


def recounted(aims: Sequence[Aim], shapes: Sequence[Shape], stated: ParamCount, wanted: ParamCount) -> Sequence[Aim]:
    """Targets whose N is counted as ``stated``, counted as ``wanted``: as in the shapes nearest in size."""
    if stated is wanted or all(aim.quantity is not Quantity.loss for aim in aims):
        return aims
    pairs = sorted((shape.params(stated), shape.params(wanted)) for shape in shapes)
    own, other = np.log(np.array(pairs, dtype=np.float64)).T
    return [
        replace(aim, params=aim.params * math.exp(float(np.interp(math.log(aim.params), own, other - own))))
        if aim.quantity is Quantity.loss
        else aim
        for aim in aims
    ]


def aims_of(target: TargetConfig) -> list[Aim]:
    """What is to be pinned, with weights.

    Raises
    ------
    UserError
        If a target lacks its numbers.
    """
    own = {name: getattr(target, name) for name in ("quantity", "flops", "params", "tokens", "weight")}
    out = []
    for place, entry in [("sweep.target", own), *(("sweep.target.also", one) for one in target.also)]:
        known = {"quantity", "flops", "params", "tokens", "weight"}
        if not isinstance(entry, Mapping) or not {"quantity"} <= entry.keys() <= known:
            raise UserError(f"{place} holds {entry!r}; give a quantity with its numbers: {', '.join(sorted(known))}.")
        numbers: dict[str, Any] = {name: value for name, value in entry.items() if name != "quantity"}
        try:
            quantity = Quantity(entry["quantity"])
            out.append(Aim(quantity=quantity, **{n: float(v) for n, v in numbers.items() if v is not None}))
        except (ValueError, TypeError):
            raise UserError(
                f"{place}={dict(entry)!r} is no target; quantity is one of {', '.join(Quantity)}, the rest numbers."
            ) from None
        except UserError as error:
            raise UserError(f"{place}: {str(error).removeprefix('target ')}") from None
    if target.half_width is not None and not 0 < target.half_width < 1:
        raise UserError(f"sweep.target.half_width={target.half_width:g} must lie between 0 and 1, e.g. 0.05 for ±5 %.")
    return out


@dataclass(frozen=True, eq=False)
class _Question:
    """A batch to be found."""

    bench: Workbench
    aims: tuple[Aim, ...]
    prior: Prior
    noise: Noise
    candidates: Candidates
    cost: Cost
    out: Mapping[str, Bools]
    least: Any
    done: tuple[Floats, Floats] | None
    runs: int
    """That are chosen already."""

    def answer(self, limit: float, *, spent: float, first: bool) -> Solution | None:
        """The best design; of a first batch a larger one where a tenth of the limit supports no fit."""
        bench, sweep = self.bench, self.bench.config.sweep
        rest = bench.limit - spent
        runs = None if sweep.allowed.runs is None else sweep.allowed.runs // bench.combinations - self.runs
        free = ~np.logical_or.reduce(list(self.out.values())) & (self.candidates.alone <= rest)
        if self.runs and (not free.any() or (runs is not None and runs < 1)):
            return None
        constraints = Constraints(
            window=sweep.allowed.window,
            tokens=ends("sweep.allowed.tokens", sweep.allowed.tokens),
            replicates=len(sweep.seeds),
            runs=runs,
            reserved=sweep.allowed.reserved if first else min(1, sweep.allowed.reserved),
        )
        while True:
            try:
                return optimal_design(
                    self.candidates,
                    self.prior.laws,
                    self.aims,
                    self.noise.value,
                    self.cost,
                    min(limit, rest),
                    constraints,
                    form=bench.config.fit.form,
                    pinned=self.least,
                    excluded=self.out,
                    done=self.done,
                )
            except UserError:
                if limit >= rest:
                    if not first:
                        return None
                    raise
                limit *= 2

    def check_reach(self, solution: Solution) -> None:
        """Refuse a target of which the limit tells nothing, and name the farthest of which it tells something."""
        aim = self.aims[0]
        error = float(solution.errors[0])
        if error <= HOPELESS or aim.quantity not in (Quantity.n_opt, Quantity.loss_opt):
            return
        at = solution.indices
        params, tokens = self.candidates.params[at], self.candidates.tokens[at]
        laws = self.prior.laws[:: max(1, len(self.prior.laws) // 16)]

        def known(log_c: float) -> bool:
            there = replace(aim, flops=math.exp(log_c))
            told = standard_errors(
                params, tokens, laws, (there,), self.noise.value, self.cost, counts=solution.counts.astype(float)
            )
            return bool(told[0] <= HOPELESS)

        low, high = math.log(float(self.candidates.flops.min())), math.log(aim.flops)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if known(middle) else (low, middle)
        raise UserError(
            f"sweep.target.flops={aim.flops:g} lies beyond what the limit reaches: {aim.quantity.value} would be known "
            f"to a factor {math.exp(min(error, 50)):.3g} only; the best that is possible is about "
            f"sweep.target.flops={math.exp(low):.2g}, or raise sweep.limit."
        )


def _prior(bench: Workbench) -> Prior:
    """The sweep's own results once they determine a law; until then what was stated, if they do not contradict it.

    Raises
    ------
    UserError
        If they do.
    """
    config = bench.config
    prior = find_prior(config, bench.folder, cost_of(bench.shapes, ParamCount.non_embedding))
    results = read_results([bench.folder], prior.params).largest_family()
    if len(results) < LEAST_RESULTS or config.forecast.prior == RESULTS:
        return prior
    own = _own(bench)
    if prior.level_known:
        noise = find_noise(config, bench.folder)
        said = contradiction(prior.laws, results.params, results.tokens, results.loss, noise.value)
        if said is not None:
            best = "state another law=" if own is None else f"forecast.prior={RESULTS} goes on from {_told(bench, own)}"
            raise UserError(f"{said}; {best}.")
    return own or prior


def _own(bench: Workbench) -> Prior | None:
    try:
        return prior_of_results(read_results([bench.folder], bench.config.fit.params), bench.config.fit)
    except UserError:
        return None


def _told(bench: Workbench, prior: Prior) -> str:
    """What a law of the results says of the target."""
    flops = bench.config.sweep.target.flops
    if flops is None:
        return "their own law"
    best = float(np.median(optimum(prior.laws, cost_of(bench.shapes, prior.params), flops)[0]))
    return f"their own law, with N* {best:.3g} at {flops:g} FLOPs"


def _runs(bench: Workbench, chosen: Chosen) -> Runs:
    """The run that gives each chosen point, by target and seed."""
    runs: Runs = {}
    for batch in chosen.targets(bench.shapes):
        runs |= grouped(bench.config, batch, bench.corpus.id)[0]
    return runs


def _cost(bench: Workbench, runs: Runs) -> float:
    """What runs cost in the limit's unit, each once."""
    recipes = {recipe.run_id: recipe for recipe, _ in runs.values()}.values()
    if not bench.by_hours:
        return float(sum(recipe.flops_spent for recipe in recipes))
    device, name = bench.config.device, bench.config.sweep.name
    return sum(
        total_seconds(
            RunConfig(sweep=name, recipe=recipe, runtime=make_runtime(bench.config, recipe, bench.experience)),
            bench.experience.flops_per_second(recipe, device),
        ) / 3600
        for recipe in recipes
    )  # fmt: skip


def _informing(bench: Workbench, runs: Runs, count: ParamCount) -> tuple[Floats, Floats] | None:
    """N and D of what is chosen already, done or on its way, once for each seed; what failed or diverged tells none."""
    rows = []
    for (target, _), (recipe, _) in runs.items():
        horizon = horizon_of(recipe, target)
        record = bench.folder.run(recipe.run_id).points().get(horizon.point_id)
        if record is None or record["verdict"] == DONE:
            rows.append((recipe.model.params(count), horizon.tokens))
    if not rows:
        return None
    n, d = np.array(rows, dtype=np.float64).T.copy()
    return n, d


def begun(bench: Workbench, there: Chosen | None) -> tuple[Batch, ...]:
    """Of what was chosen by other settings, the points of runs that have begun: they stay, each in its batch.

    But for those that are excluded by hand and not done, so that a sweep can go on without a point that fails.
    """
    out = []
    for batch in there.batches if there is not None else ():
        known = {(shape.layers, shape.d_model) for shape in bench.shapes}
        points = [point for point in batch.points if (point.layers, point.d_model) in known]
        seen: dict[tuple[int, int, float], list[int]] = {}
        alone = Chosen(key="", batches=[Batch(points=points, facts={})])
        wide = replace(bench.config.sweep, seeds=sorted({seed for point in points for seed in point.seeds}) or [0])
        for (target, seed), (recipe, _) in _runs(
            replace(bench, config=replace(bench.config, sweep=wide)), alone
        ).items():
            folder, horizon = bench.folder.run(recipe.run_id), horizon_of(recipe, target)
            if not folder.config_path.exists():
                continue
            record = folder.points().get(horizon.point_id)
            done = record is not None and record["verdict"] == DONE
            if done or not is_excluded(bench.config, recipe, horizon.tokens, [horizon.point_id]):
                seen.setdefault((target.shape.layers, target.shape.d_model, target.tokens), []).append(seed)
        kept = [replace(point, seeds=tuple(seen[point.place])) for point in points if point.place in seen]
        if kept:
            out.append(Batch(points=kept, facts={"kept": len(kept)}))
    return tuple(out)


def _batch(bench: Workbench, ask: _Question, pool: Pool, solution: Solution, spent: float) -> Batch:
    seeds = tuple(bench.config.sweep.seeds)
    points = []
    for index, count in zip(solution.indices, solution.counts, strict=True):
        target: Target = pool.targets[index]
        role = "pinned" if ask.least[index] else "reserved" if index in solution.reserved else "optimal"
        points.append(
            ChosenPoint(
                layers=target.shape.layers,
                d_model=target.shape.d_model,
                tokens=target.tokens,
                budget=target.budget,
                seeds=seeds[: int(count)],
                role=role,
            )
        )
    fit, noise, times = bench.config.fit, ask.noise.value, bench.combinations
    facts = {
        "spent": times * solution.spent,
        "spent_before": times * spent,
        "limit": times * bench.limit,
        "unit": "device-hours" if bench.by_hours else "FLOPs",
        "runs": times * solution.runs,
        "candidates": len(pool),
        "targets": [aim.quantity.value for aim in ask.aims],
        "errors": [float(error) * error_factor(fit, noise) for error in solution.errors],
        "efficiency": solution.efficiency,
        "prior": ask.prior.source,
        "noise": {"value": noise, "source": ask.noise.source},
    }
    return Batch(points=points, facts=facts)

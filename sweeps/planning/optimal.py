"""``sweep.design=optimal``: the points that pin a target best for what they cost, chosen once or batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from sweeps.planning.aims import aims_of, recounted
from sweeps.planning.begun import known
from sweeps.planning.candidates import Pool, ends, find_pool, forbidden, pinned, pool_of
from sweeps.planning.chosen import Batch, Chosen, ChosenPoint, read_chosen, settings_key, write_chosen
from sweeps.planning.cost import total_seconds
from sweeps.planning.design import Target
from sweeps.planning.forecast import cost_of
from sweeps.planning.precision import precision_so_far
from sweeps.planning.prior import RESULTS, Prior, find_noise, find_prior, prior_of_results
from sweeps.planning.recipes import make_runtime
from sweeps.planning.results import read_results
from sweeps.planning.trunks import Runs, horizon_of
from sweeps.planning.workbench import Workbench, runs_of
from trainer.errors import UserError
from trainer.runfolder import DONE, RunConfig
from trainer.shape import ParamCount

FIRST = 0.1
"""Of the limit: the first batch, where a design goes batch by batch."""
GROWTH = (1.3, 2.0)
"""Of what is spent in all, from one batch to the next: by what the interval still lacks, within these."""
LEAST_RESULTS = 6
"""That may speak against a prior."""
HOPELESS = 1.0
"""A standard error, of a logarithm, with which nothing is known of a target."""


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
    runs = runs_of(bench, chosen)
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

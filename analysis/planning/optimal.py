"""The points that pin a target best under a limit on what they cost: optimal designs that do not trust their law.

Locally, for one law, the best design is known to be extreme: few points, at the ends of what is allowed, where a form
that fails is neither seen nor harmless. So the criterion is averaged over the prior's laws (Chaloner and Larntz,
"Optimal Bayesian design applied to logistic regression experiments", J. Statist. Plann. Inference 21, 1989), sizes stay
within a factor of the compute-optimal one, a point has few replicates, and some runs are reserved to test the form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from analysis.config import Form
from analysis.fitting.optimum import optimum
from analysis.fitting.parametric import basis_of, unsupported
from analysis.fitting.values import Bools, Cost, Floats, Ints, loss_of_laws
from analysis.planning.bound import Bound, Problem, continuous_bound
from analysis.planning.candidates import Candidates
from analysis.planning.exchange import whole_runs
from analysis.planning.information import Target, gradients, jacobian
from trainer.errors import UserError

MOST_LAWS = 16
"""Of the prior that the criterion is averaged over, evenly spaced among those given."""
LARGEST_RESERVED = 1 / 3  # of the limit, that one reserved run may cost
ALL_RESERVED = 1 / 2  # of the limit, for all of them
TOLLS, CLOSE_TOLL = 12, 2e-2  # halvings in the search for the price of a run, and how close each bound is
LEAST_POINTS = 6  # to fit five parameters


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What a design may ask for."""

    window: float | None = 10.0
    """The trust window: sizes within this factor of the compute-optimal one at their C, either way; None for any."""
    params: tuple[float, float] = (0.0, math.inf)
    """Least and largest N."""
    tokens: tuple[float, float] = (0.0, math.inf)
    """Least and largest D."""
    ratio: tuple[float, float] = (0.0, math.inf)
    """Least and largest tokens per parameter."""
    replicates: int = 1
    """Of one point, at most: seeds."""
    runs: int | None = None
    """At most: a WSD trunk with all its horizons is one run."""
    reserved: int = 5
    """Budgets with a run near the compute-optimal size that is there to test the form; 0 for none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """Chosen points and what they are worth."""

    indices: Ints
    """(m,): into the candidates, rising."""
    counts: Ints
    """(m,): replicates of each."""
    variance: float
    """The criterion: the targets' weighted variances by least squares, summed, and averaged over the laws."""
    errors: Floats
    """(T,): linearised standard error of each target, the root of its mean variance over the laws."""
    bound: float
    """No design from these candidates, within these limits and with the points it must have, has a lower variance."""
    reserved: Ints
    """Those of ``indices`` that are reserved to test the form."""
    spent: float
    """In the unit of the limit."""
    runs: int

    @property
    def efficiency(self) -> float:
        """``bound`` over ``variance``: the share of the runs' worth that is surely not wasted; at most 1."""
        return self.bound / self.variance


def optimal_design(
    candidates: Candidates,
    laws: Floats,
    targets: tuple[Target, ...],
    noise: float,
    cost: Cost,
    limit: float,
    constraints: Constraints | None = None,
    *,
    form: Form = Form.free,
    pinned: Ints | None = None,
    excluded: Mapping[str, Bools] | None = None,
    done: tuple[Floats, Floats] | None = None,
) -> Design:
    """Choose points.

    Errors are taken as independent and alike, also along a trunk, whose horizons share part of theirs.

    Parameters
    ----------
    candidates
        n points.
    laws
        (K, 5): the prior.
    targets
        What is to be known, with weights.
    noise
        Standard deviation of log L.
    cost
        FLOPs per token, which says where the compute-optimal size lies.
    limit
        On the total price of the design, in the unit of the candidates' prices.
    form
        Which parameters the fit will leave free.
    pinned
        (n,): replicates that the design must have, wherever they lie; None for none.
    excluded
        By the reason why, (n,): candidates that it must not have unless they are pinned; None for none.
    done
        N and D (m,) of results in hand, which inform and cost nothing; None for none.

    Returns
    -------
    Design
        The same for the same arguments, to the last bit on one machine.

    Raises
    ------
    UserError
        If the limit pays for less than can be fitted, the constraints leave too little to choose from, or the pinned
        points cost more than the limit.
    """
    constraints = constraints or Constraints()
    laws = laws[np.unique(np.linspace(0, len(laws) - 1, MOST_LAWS).astype(int))]
    middle = laws[np.argsort(targets[0].value(laws, cost), kind="stable")[len(laws) // 2]]
    pinned = np.zeros(len(candidates), dtype=np.int64) if pinned is None else pinned
    _check_limit(candidates, pinned, limit, constraints)
    open_ = _allowed(candidates, middle, cost, limit, constraints, excluded or {})
    least, reserved = _reserve(candidates, middle, cost, limit, constraints, pinned, open_)
    kept = np.flatnonzero(open_ | (least > 0))
    fewer = candidates.take(kept)
    _check_support(fewer, np.ones(len(kept), dtype=np.int64), middle, done, form, "The candidates that are allowed")
    most = np.maximum(np.where(open_[kept], constraints.replicates, 0), least[kept])
    rows, aims, known = _linearised(fewer, laws, targets, noise, cost, form, done)
    problem = Problem(
        rows=rows,
        aims=aims,
        known=known,
        candidates=fewer,
        least=least[kept],
        most=most,
        limit=limit,
        most_runs=constraints.runs,
    )
    counts, least_variance = problem.least, None
    if ((most > problem.least) & (fewer.price <= limit - fewer.total(problem.least))).any():
        problem, bound = _bounded(problem)
        counts, least_variance = whole_runs(problem, bound), bound.variance
    _check_support(fewer, counts, middle, done, form, f"The best design within a limit of {limit:.4g}")
    inverse = np.linalg.inv(problem.information(counts))
    each = np.einsum("ktp,kpq,ktq->kt", aims, inverse, aims).mean(axis=0)
    chosen = np.flatnonzero(counts)
    return Design(
        indices=kept[chosen],
        counts=counts[chosen],
        variance=float(each.sum()),
        errors=np.sqrt(each / [target.weight for target in targets]),
        bound=float(each.sum()) if least_variance is None else least_variance,
        reserved=reserved,
        spent=fewer.total(counts),
        runs=fewer.runs(counts),
    )


def _allowed(
    candidates: Candidates,
    law: Floats,
    cost: Cost,
    limit: float,
    constraints: Constraints,
    excluded: Mapping[str, Bools],
) -> Bools:
    """(n,): within all constraints, not excluded, and by itself within the limit."""
    n, d = candidates.params, candidates.tokens
    tests = {f"limit={limit:.4g}": candidates.alone <= limit, **{why: ~out for why, out in excluded.items()}}
    for name, values in (("params", n), ("tokens", d), ("ratio", d / n)):
        low, high = getattr(constraints, name)
        tests[f"{name}={low:g} to {high:g}"] = (values >= low * (1 - 1e-9)) & (values <= high * (1 + 1e-9))
    if constraints.window is not None:
        far = np.abs(np.log(n / optimum(law, cost, candidates.flops)[0]))
        tests[f"window={constraints.window:g}"] = far <= math.log(constraints.window) + 1e-9
    inside = np.logical_and.reduce(list(tests.values()))
    if inside.sum() < LEAST_POINTS:
        without = {
            name: int(np.logical_and.reduce([test for other, test in tests.items() if other != name]).sum())
            for name in tests
        }
        widest = max(without, key=lambda name: without[name])
        more = f"; without {widest} there would be {without[widest]}" if without[widest] > inside.sum() else ""
        raise UserError(
            f"The constraints leave {int(inside.sum())} of {len(n)} candidate points, and a fit needs "
            f"{LEAST_POINTS}{more}."
        )
    return np.asarray(inside)


def _reserve(
    candidates: Candidates,
    law: Floats,
    cost: Cost,
    limit: float,
    constraints: Constraints,
    pinned: Ints,
    open_: Bools,
) -> tuple[Ints, Ints]:
    """Replicates (n,) that the design must have, pinned and reserved ones, and the indices of the latter.

    Budgets from the largest, of which a run costs at most a third of the limit, down to the smallest, evenly in log C;
    at each the candidate nearest to it and to the compute-optimal size. What would take the reserved runs above half
    of the limit is left out.
    """
    least, reserved = pinned.copy(), []
    fits = np.flatnonzero(open_ & (candidates.alone <= LARGEST_RESERVED * limit))
    count = constraints.reserved if constraints.runs is None else min(constraints.reserved, constraints.runs // 3)
    if count and len(fits):
        log_c = np.log(candidates.flops[fits])
        off = np.abs(np.log(candidates.params[fits] / optimum(law, cost, candidates.flops[fits])[0]))
        before = candidates.total(pinned)
        for level in np.linspace(log_c.max(), log_c.min(), count) if count > 1 else [log_c.max()]:
            best = int(fits[np.argmin(np.abs(log_c - level) + off)])
            more = least.copy()
            more[best] = max(1, more[best])
            if best not in reserved and candidates.total(more) <= min(before + ALL_RESERVED * limit, limit):
                least = more
                reserved.append(best)
    return least, np.array(sorted(reserved), dtype=np.int64)


def _linearised(
    candidates: Candidates,
    laws: Floats,
    targets: tuple[Target, ...],
    noise: float,
    cost: Cost,
    form: Form,
    done: tuple[Floats, Floats] | None,
) -> tuple[Floats, Floats, Floats]:
    """Rows, aims and known information of a :class:`Problem`, in coordinates in which all candidates are orthonormal.

    In theta itself the information's condition number is about 1e11.
    """
    basis = basis_of(form)
    rows = jacobian(laws, candidates.params, candidates.tokens) @ basis / noise
    there = jacobian(laws, *done) @ basis / noise if done is not None else rows[:, :0]
    root = np.linalg.qr(np.concatenate([rows, there], axis=1), mode="r")
    back = np.linalg.inv(root)
    rows, there = rows @ back, there @ back
    aims = gradients(targets, laws, cost) @ basis @ back
    return rows, aims, np.swapaxes(there, 1, 2) @ there


def _bounded(problem: Problem) -> tuple[Problem, Bound]:
    """The bound, and the problem with the toll on runs that keeps their number within its limit."""
    bound = continuous_bound(problem)
    if problem.most_runs is None or bound.runs <= problem.most_runs:
        return problem, bound
    low, high = (problem.limit / problem.most_runs * factor for factor in (1e-4, 1e4))
    best = bound.variance
    for _ in range(TOLLS):
        tolled = replace(problem, toll=math.sqrt(low * high))
        bound = continuous_bound(tolled, CLOSE_TOLL)
        best = max(best, bound.variance)
        low, high = (tolled.toll, high) if bound.runs > problem.most_runs else (low, tolled.toll)
    return tolled, replace(bound, variance=best)


def _check_limit(candidates: Candidates, pinned: Ints, limit: float, constraints: Constraints) -> None:
    for name in ("params", "tokens", "flops", "alone"):
        values = getattr(candidates, name)
        if not (np.isfinite(values) & (values > 0)).all():
            what = "cost" if name == "alone" else name
            raise UserError(f"A candidate's {what} is not a positive finite number; leave such points out.")
    cheapest = candidates.alone.min()
    if not limit >= cheapest:
        raise UserError(f"The cost limit of {limit:.4g} pays for no run: the cheapest candidate costs {cheapest:.4g}.")
    required, runs = candidates.total(pinned), candidates.runs(pinned)
    if required > limit * (1 + 1e-9):
        raise UserError(f"The pinned points cost {required:.4g}, above the cost limit of {limit:.4g}; unpin some.")
    if constraints.runs is not None and runs > constraints.runs:
        raise UserError(f"The pinned points take {runs} runs, above the {constraints.runs} allowed; raise it or unpin.")


def _check_support(
    candidates: Candidates, counts: Ints, law: Floats, done: tuple[Floats, Floats] | None, form: Form, what: str
) -> None:
    """Refuse points that no fit could be made of."""
    params, tokens = candidates.params[counts > 0], candidates.tokens[counts > 0]
    if done is not None:
        params, tokens = np.concatenate([params, done[0]]), np.concatenate([tokens, done[1]])
    reason = unsupported(params, tokens, loss_of_laws(law, np.log(params), np.log(tokens)), form)
    if reason:
        cheapest = np.sort(candidates.alone)[:LEAST_POINTS].sum()
        raise UserError(
            f"{what} cannot be fitted: {reason.rstrip('.')}; the {LEAST_POINTS} cheapest candidates "
            f"cost {cheapest:.4g} together."
        )

"""What designs would give for their cost under one prior: the classic valleys, and optimal ones within some windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from analysis.config import Form
from analysis.fitting.optimum import optimum
from analysis.fitting.values import Cost, Floats
from analysis.planning.candidates import Candidates
from analysis.planning.information import Target, standard_errors
from analysis.planning.optimal import Constraints, optimal_design
from trainer.errors import UserError

BUDGETS, SPREAD = 9, 8.0
"""The classic design: valleys at so many budgets, sizes within this factor of the best one, either way;"""
SIZES = (4, 6, 10, 16)
"""so many sizes each: what makes it dearer, and preciser."""
SHARES = (0.03, 0.06, 0.12, 0.25, 0.5)
"""Of what the classic design of 10 sizes costs: optimal designs' limits."""
WINDOWS = (10.0, 30.0)
FINE, MANY = 15, 21
"""Budgets and sizes that an optimal design chooses from."""
FEW_LAWS = 4


@dataclass(frozen=True, eq=False)
class Curve:
    """Standard errors of a target at some costs."""

    name: str
    flops: Floats
    errors: Floats


def compared(
    laws: Floats,
    target: Target,
    noise: float,
    cost: Cost,
    reach: tuple[float, float],
    tell: Callable[[str, float], None] = lambda message, share: None,
    *,
    form: Form = Form.free,
) -> Iterator[Curve]:
    """The classic design and optimal ones, on the same range of budgets.

    Parameters
    ----------
    laws
        (K, 5): the prior, of which a few are averaged over.
    reach
        The least and the largest C of a run.
    tell
        Hears what is computed and the share that is done.
    form
        Which parameters the fit will leave free.
    """
    few = laws[np.unique(np.linspace(0, len(laws) - 1, FEW_LAWS).astype(int))]
    middle = few[np.argsort(target.value(few, cost), kind="stable")[len(few) // 2]]
    classic = [_valleys(middle, cost, reach, BUDGETS, sizes, SPREAD) for sizes in SIZES]
    errors = [float(standard_errors(n, d, few, (target,), noise, cost, form=form)[0]) for n, d, _ in classic]
    costs = np.array([c.sum() for _, _, c in classic])
    yield Curve(f"classic: {BUDGETS} budgets, {SIZES[0]} to {SIZES[-1]} sizes each", costs, np.array(errors))
    totals = costs[SIZES.index(10)] * np.array(SHARES)
    for number, window in enumerate(WINDOWS):
        found = []
        n, d, c = _valleys(middle, cost, reach, FINE, MANY, window)
        those = Candidates(params=n, tokens=d, flops=c, price=c)
        for step, total in enumerate(totals):
            tell("comparing designs", (number + step / len(totals)) / len(WINDOWS))
            try:
                limits = Constraints(window=window)
                design = optimal_design(those, few, (target,), noise, cost, float(total), limits, form=form)
                found.append(float(design.errors[0]))
            except UserError:  # so little supports no fit
                found.append(np.nan)
        yield Curve(f"optimal within {window:g} times the best size", totals, np.array(found))


def _valleys(
    law: Floats, cost: Cost, reach: tuple[float, float], budgets: int, sizes: int, spread: float
) -> tuple[Floats, Floats, Floats]:
    """N, D, C of sizes within ``spread`` of the best one at budgets over ``reach``."""
    at = np.geomspace(*reach, budgets)
    best = optimum(law, cost, at)[0]
    params = (best[:, None] * np.geomspace(1 / spread, spread, sizes)).ravel()
    flops = np.repeat(at, sizes)
    return params, flops / cost.flops_per_token(params), flops

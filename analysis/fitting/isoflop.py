"""Approach 2: each budget's valley of loss over log N, and power laws through the minima (Hoffmann et al. 2022, 3.2).

A valley that has no minimum, has it outside the sampled sizes, or rests on too few of them says nothing about the
optimum, and is refused with that reason.

The line laid through a valley is not the loss's true shape, so its minimum is biased even without noise: the more, the
wider the sizes reach. By Approach 3's surface the bias is known: the surface's own losses at the same rows, through the
same line, against the surface's true optimum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from analysis.config import Valley, chosen
from analysis.fitting.budgets import Design, log_tokens, width, within
from analysis.fitting.columns import columns
from analysis.fitting.optimum import fit_cost, optimum
from analysis.fitting.parametric import refit_parametric
from analysis.fitting.powerlaw import power_laws, to_laws
from analysis.fitting.valley import LEAST_SIZES, Sizes
from analysis.fitting.values import (
    WIDEST_BUDGET,
    Bools,
    BudgetValley,
    Cost,
    Floats,
    IsoflopFit,
    ParametricFit,
    Refused,
    Window,
)
from trainer.errors import UserError

WINDOWS = (2.0, 3.0, 4.0, 8.0, 16.0, None)
STILL = 1e-9  # of log N: a minimum that moves less between replicates has not moved


def group_budgets(flops: npt.ArrayLike, gap: float = 0.1) -> Floats:
    """Each row's budget: the geometric mean of the achieved FLOPs of its group.

    Groups are cut where neighbouring FLOPs differ by more than ``gap``. Labels are never rounded, so budgets of 1.5e19
    and 2.4e19 stay apart.

    Parameters
    ----------
    flops
        (n,), positive: achieved C of each point, in FLOPs.
    gap
        A share, above 0.

    Returns
    -------
    (n,): in FLOPs, in the order of ``flops``; rows of one budget share the number exactly.

    Raises
    ------
    UserError
        If a number is not finite and positive.
    """
    (flops,) = columns(flops=flops)
    if not 0 < gap < np.inf:
        raise UserError(f"fit.budget_gap={gap:g} is out of range; give a number above 0, e.g. 0.1.")
    order = np.argsort(flops, kind="stable")
    logs = np.log(flops[order])
    group = np.cumsum(np.diff(logs, prepend=logs[:1]) > np.log1p(gap))
    means = np.exp(np.bincount(group, logs) / np.bincount(group))
    out = np.empty_like(flops)
    out[order] = means[group]
    return out


def fit_isoflop(
    params: npt.ArrayLike,
    tokens: npt.ArrayLike,
    flops: npt.ArrayLike,
    loss: npt.ArrayLike,
    budget: npt.ArrayLike,
    *,
    window: float | None = None,
    valley: Valley | str = Valley.parabola,
    surface: ParametricFit | None = None,
    cost: Cost | None = None,
    unbias: bool = False,
) -> IsoflopFit | Refused:
    """Fit Approach 2.

    Parameters
    ----------
    params, tokens, flops, loss, budget
        (n,), positive: N, D, achieved C in FLOPs and L of each point, and its budget in FLOPs as :func:`group_budgets`
        gives it. Any columns, of a pandas Series the values by position.
    window
        Use only sizes within this factor, above 1, of the budget's best one; None uses all. Exponents depend on it, see
        :func:`window_sweep`.
    valley
        The line through a budget's losses: a :class:`~analysis.config.Valley` or its name; ``surface`` takes the
        minimum of Approach 3's law instead.
    surface
        Approach 3 on the same points; needed for ``valley=surface``, for the bias, and for ``unbias``.
    cost
        FLOPs per token as a power law in N; None fits one to the points.
    unbias
        Divide the bias out of N* (and move D* along). L* stays that of the valley, whose bias is far smaller.

    Returns
    -------
    IsoflopFit
        A valley per budget, and N*, D* and L* as power laws in C through the usable minima.
    Refused
        With the reason: fewer than two budgets with a valley, no distinct budgets, no surface where one is needed.

    Raises
    ------
    UserError
        If a number is not finite and positive, the columns differ in length, ``valley`` is unknown, or ``window`` is
        not above 1.

    References
    ----------
    Hoffmann et al., "Training compute-optimal large language models" (2022), section 3.2.
    """
    params, tokens, flops, loss, budget = columns(params=params, tokens=tokens, flops=flops, loss=loss, budget=budget)
    valley = chosen(Valley, valley, "fit.valley")
    if window is not None and not window > 1:
        raise UserError(f"fit.window={window:g} is out of range; give a factor above 1, or null for all sizes.")
    if not len(loss):
        return Refused(reason="there are no rows.")
    if surface is None and (unbias or valley is Valley.surface):
        setting = "fit.unbias=true" if unbias else "fit.valley=surface"
        return Refused(reason=f"{setting} needs Approach 3's surface, and there is none that converged.")
    rows = Design(params, tokens, flops, loss, cost or fit_cost(params, tokens, flops), valley, surface)
    valleys = tuple(
        rows.valley_of(float(at), within(window, np.flatnonzero(budget == at), params, loss))
        for at in np.unique(budget)
    )
    bias = None if surface is None else {at.budget: rows.bias(at) for at in valleys if at.refused is None}
    if unbias and bias is not None:
        valleys = tuple(rows.unbiased(at, bias[at.budget]) if at.budget in bias else at for at in valleys)
    accepted = [at for at in valleys if at.refused is None]
    chained = sum(len(at.rows) for at in valleys if width(flops[at.rows]) > WIDEST_BUDGET)
    if chained > len(loss) / 2:
        why = f"{chained} of {len(loss)} rows belong to no distinct budget, so this is no isoFLOP design"
        return Refused(reason=f"{why} (fit.budget_gap cuts budgets apart).", valleys=valleys)
    if len(accepted) < 2:
        reasons = "; ".join(dict.fromkeys(at.refused for at in valleys if at.refused))
        why = f"{len(accepted)} of {len(valleys)} budget(s) have a usable valley, and at least 2 are needed"
        return Refused(reason=f"{why} ({reasons})." if reasons else f"{why}.", valleys=valleys)
    at = np.array([one.budget for one in accepted])
    minima = np.array([(one.n_opt, one.d_opt, one.loss_opt) for one in accepted], dtype=np.float64)
    log_n, log_d, log_loss = np.log(minima).T[:, None]
    values = power_laws(np.log(at), log_n, log_d, log_loss, np.ones((1, len(at)), dtype=np.bool_))
    return IsoflopFit(
        valleys=valleys,
        laws=to_laws(values[0], (float(at.min()), float(at.max()))),
        valley=valley,
        surface=surface,
        cost=rows.cost,
        bias=None if bias is None else np.array([bias[one.budget] for one in accepted]),
        unbiased=unbias,
    )


def refit_isoflop(
    params: Floats, tokens: Floats, loss: Floats, weights: Floats, fit: IsoflopFit, shift: Floats | None = None
) -> tuple[Floats, Bools]:
    """Fit again under other row weights or losses: the bootstrap.

    The bias of an unbiased fit is that of the whole design, and is not estimated again. Akima's interpolation passes
    through the mean of every size, so where sizes have one row each, weights above 0 do not move it: such replicates
    would say that nothing is uncertain, and are NaN.

    Parameters
    ----------
    weights
        (replicates, n), whole or not; 0 leaves a row out.
    shift
        (replicates, n): added to log L; None for nothing.

    Returns
    -------
    values
        (replicates, 6), rows as ``PowerLaws.array()``; NaN where fewer than two budgets keep a usable valley.
    found
        (replicates, accepted budgets): whether the budget kept one; the laws go through those that did.
    """
    accepted = fit.accepted
    shape = (len(weights), len(accepted))
    log_n, log_d, log_loss = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    bottoms = _bottoms(params, tokens, loss, weights, fit, shift)
    for i, valley in enumerate(accepted):
        x = np.log(params[valley.rows])
        at, lowest = bottoms(valley)
        with np.errstate(invalid="ignore"):
            good = (at > x.min()) & (at < x.max()) & (lowest > 0)
        moved = at - fit.bias[i] if fit.unbiased and fit.bias is not None else at
        log_n[:, i] = np.where(good, moved, np.nan)
        log_d[:, i] = log_tokens(log_n[:, i], params[valley.rows], tokens[valley.rows])
        log_loss[:, i] = np.log(np.where(good, lowest, np.nan))
    found = np.isfinite(log_n)
    values = power_laws(np.log([valley.budget for valley in accepted]), log_n, log_d, log_loss, found)
    drawn = len(weights) > 1 and np.ptp(weights, axis=0).any()
    if fit.valley is Valley.akima and drawn and (np.ptp(log_n, axis=0) < STILL).all():
        values[:] = np.nan
    return values, found


def window_sweep(
    params: npt.ArrayLike,
    tokens: npt.ArrayLike,
    flops: npt.ArrayLike,
    loss: npt.ArrayLike,
    budget: npt.ArrayLike,
    *,
    valley: Valley | str = Valley.parabola,
    surface: ParametricFit | None = None,
    cost: Cost | None = None,
) -> tuple[Window, ...]:
    """How the exponents move with the sizes that count: within 2, 3, 4, 8, 16 times each budget's best, and all.

    Arguments, and what is raised, are those of :func:`fit_isoflop`.

    Returns
    -------
    One for each window, by rising factor; of windows that keep the same rows only the last is listed.
    """
    params, tokens, flops, loss, budget = columns(params=params, tokens=tokens, flops=flops, loss=loss, budget=budget)
    if not len(loss):
        return ()
    cost = cost or fit_cost(params, tokens, flops)
    out: dict[bytes, Window] = {}
    groups = [np.flatnonzero(budget == at) for at in np.unique(budget)]
    for factor in WINDOWS:
        kept = np.zeros(len(loss), dtype=np.bool_)
        for rows in groups:
            kept[within(factor, rows, params, loss)] = True
        fit = fit_isoflop(params, tokens, flops, loss, budget, window=factor, valley=valley, surface=surface, cost=cost)
        usable = sum(at.refused is None for at in fit.valleys)
        laws = None if isinstance(fit, Refused) else fit.laws
        a, b = (None, None) if laws is None else (laws.params.exponent, laws.tokens.exponent)
        out[kept.tobytes()] = Window(factor=factor, a=a, b=b, budgets=usable)
    return tuple(out.values())


def _bottoms(
    params: Floats, tokens: Floats, loss: Floats, weights: Floats, fit: IsoflopFit, shift: Floats | None
) -> Callable[[BudgetValley], tuple[Floats, Floats]]:
    """For an accepted valley, (replicates,) log N and loss at its minimum; NaN where a replicate has none."""
    least = LEAST_SIZES[fit.valley] - 1

    def sizes(valley: BudgetValley) -> Sizes:
        rows = valley.rows
        shifted = loss[rows] if shift is None else loss[rows] * np.exp(shift[:, rows])
        return Sizes.of(np.log(params[rows]), shifted, weights[:, rows])

    if fit.valley is not Valley.surface or fit.surface is None:
        return lambda valley: sizes(valley).minima(fit.valley, least)
    theta, good = refit_parametric(params, tokens, loss, weights, fit.surface, shift=shift)

    def of_surface(valley: BudgetValley) -> tuple[Floats, Floats]:
        known = good & ((sizes(valley).weight > 0).sum(axis=1) >= least)
        n, _, lowest = optimum(np.where(known[:, None], theta, np.nan), fit.cost, valley.budget)
        return np.log(n), lowest

    return of_surface

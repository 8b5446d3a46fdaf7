"""Approach 2: a parabola of loss in log N per budget, and power laws through the minima (Hoffmann et al. 2022, 3.2).

A parabola that opens downwards, that has its minimum outside the sampled sizes, or that rests on fewer than four sizes
says nothing about the optimum, and is refused with that reason.
"""

from __future__ import annotations

import numpy as np

from analysis.fits import Bools, Floats, Ints, IsoflopFit, Parabola, Refused
from analysis.powerlaw import power_laws, to_laws

LEAST_SIZES = 4
LEAST_SIZES_RESAMPLED = 3  # a resample of a valley with few sizes rarely keeps four of them
WIDEST_BUDGET = 1.3  # rows whose FLOPs differ by more than this factor do not share a budget


def group_budgets(flops: Floats, gap: float = 0.1) -> Floats:
    """Each row's budget: the geometric mean of the achieved FLOPs of its group.

    Groups are cut where neighbouring FLOPs differ by more than ``gap`` (relative). Labels are never rounded, so budgets
    of 1.5e19 and 2.4e19 stay apart.
    """
    order = np.argsort(flops, kind="stable")
    logs = np.log(flops[order])
    group = np.concatenate([[0], np.cumsum(np.diff(logs) > np.log1p(gap))])
    means = np.exp(np.bincount(group, logs) / np.bincount(group))
    out = np.empty_like(flops)
    out[order] = means[group]
    return out


def fit_isoflop(
    params: Floats, tokens: Floats, flops: Floats, loss: Floats, budget: Floats, *, window: float | None = None
) -> IsoflopFit | Refused:
    """Fit Approach 2.

    Parameters
    ----------
    params, tokens, flops, loss, budget
        (n,): N, D, achieved C and L of each point, and its budget as :func:`group_budgets` gives it.
    window
        Use only sizes within this factor of the budget's best one; None uses all. Exponents depend on it.
    """
    parabolas = tuple(
        _parabola(at, rows, params, tokens, flops, loss)
        for at, rows in ((at, _within(window, np.flatnonzero(budget == at), params, loss)) for at in np.unique(budget))
    )
    accepted = [parabola for parabola in parabolas if parabola.refused is None]
    chained = sum(len(parabola.rows) for parabola in parabolas if _width(flops[parabola.rows]) > WIDEST_BUDGET)
    if chained > len(loss) / 2:
        why = f"{chained} of {len(loss)} rows belong to no distinct budget, so this is no isoFLOP design"
        return Refused(reason=f"{why} (fit.budget_gap cuts budgets apart).", parabolas=parabolas)
    if len(accepted) < 2:
        reasons = "; ".join(dict.fromkeys(p.refused for p in parabolas if p.refused))
        why = f"{len(accepted)} of {len(parabolas)} budget(s) have a usable parabola, and at least 2 are needed"
        return Refused(reason=f"{why} ({reasons})." if reasons else f"{why}.", parabolas=parabolas)
    at = np.array([parabola.budget for parabola in accepted])
    minima = [[p.n_opt or np.nan, p.d_opt or np.nan, p.loss_opt or np.nan] for p in accepted]
    found = np.log(np.array(minima)).T[:, None]
    values = power_laws(np.log(at), found[0], found[1], found[2], np.ones((1, len(at)), dtype=np.bool_))
    laws = to_laws(values[0], (float(at.min()), float(at.max())))
    return IsoflopFit(parabolas=parabolas, laws=laws)


def refit_isoflop(
    params: Floats, tokens: Floats, loss: Floats, weights: Floats, fit: IsoflopFit
) -> tuple[Floats, Bools]:
    """Fit again under other row weights: the bootstrap.

    Parameters
    ----------
    weights
        (replicates, n).

    Returns
    -------
    values
        (replicates, 6), rows as ``PowerLaws.array()``; NaN where fewer than two budgets keep a usable parabola.
    found
        (replicates, accepted budgets): whether the budget kept one; the laws go through those that did.
    """
    accepted = fit.accepted
    shape = (len(weights), len(accepted))
    log_n, log_d, log_loss = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    for i, parabola in enumerate(accepted):
        rows = parabola.rows
        x = np.log(params[rows]) - parabola.centre
        c2, c1, c0 = _weighted_parabolas(x, loss[rows], weights[:, rows]).T
        with np.errstate(divide="ignore", invalid="ignore"):
            vertex = -c1 / (2 * c2)
            lowest = c0 + c1 * vertex / 2
            good = (c2 > 0) & (vertex >= x.min()) & (vertex <= x.max()) & (lowest > 0)
            log_n[:, i] = np.where(good, vertex + parabola.centre, np.nan)
            log_d[:, i] = _log_tokens(log_n[:, i], params[rows], tokens[rows])
            log_loss[:, i] = np.where(good, np.log(np.where(good, lowest, 1.0)), np.nan)
    log_flops = np.log([parabola.budget for parabola in accepted])
    found = np.isfinite(log_n)
    return power_laws(log_flops, log_n, log_d, log_loss, found), found


def _width(flops: Floats) -> float:
    return float(flops.max() / flops.min())


def _within(window: float | None, rows: Ints, params: Floats, loss: Floats) -> Ints:
    if window is None:
        return rows
    best = params[rows[np.argmin(loss[rows])]]
    near: Ints = rows[np.abs(np.log(params[rows] / best)) <= np.log(window) + 1e-9]
    return near


def _parabola(budget: float, rows: Ints, params: Floats, tokens: Floats, flops: Floats, loss: Floats) -> Parabola:
    x = np.log(params[rows])
    centre, sizes = float(x.mean()), len(np.unique(x))
    if _width(flops[rows]) > WIDEST_BUDGET:
        reason = (
            f"rows between {flops[rows].min():.3g} and {flops[rows].max():.3g} FLOPs lie too close to part, too wide"
        )
        return Parabola(budget=float(budget), rows=rows, centre=centre, refused=f"{reason} for one budget")
    if sizes < LEAST_SIZES:
        reason = f"fewer than {LEAST_SIZES} sizes"
        return Parabola(budget=float(budget), rows=rows, centre=centre, refused=reason)
    c2, c1, c0 = (float(c) for c in _weighted_parabolas(x - centre, loss[rows], np.ones((1, len(rows))))[0])
    if c2 <= 1e-12 * float(np.max(loss[rows])):
        reason = "no valley: the parabola does not open upwards"
        return Parabola(budget=float(budget), rows=rows, coefficients=(c2, c1, c0), centre=centre, refused=reason)
    vertex = -c1 / (2 * c2)
    log_n = np.array([vertex + centre])
    outside = not x.min() <= log_n[0] <= x.max()
    return Parabola(
        budget=float(budget),
        rows=rows,
        coefficients=(c2, c1, c0),
        centre=centre,
        n_opt=float(np.exp(log_n[0])),
        d_opt=float(np.exp(_log_tokens(log_n, params[rows], tokens[rows])[0])),
        loss_opt=c0 + c1 * vertex / 2,
        refused="the minimum lies outside the sampled sizes" if outside else None,
    )


def _weighted_parabolas(x: Floats, loss: Floats, weights: Floats) -> Floats:
    """(batch, 3): c2, c1, c0 for ``weights`` (batch, m); NaN where they leave fewer than three distinct ``x`` (m,)."""
    scale = float(np.ptp(x)) or 1.0
    u = x / scale
    features = np.stack([u**2, u, np.ones_like(u)], axis=1)
    # The scatter in the rows of one size must not be taken for sizes, so distinct ones are counted.
    size = np.unique(x, return_inverse=True)[1]
    present = np.stack([weights[:, size == s].sum(axis=1) > 0 for s in range(size.max() + 1)], axis=1)
    enough = present.sum(axis=1) >= LEAST_SIZES_RESAMPLED
    gram = np.einsum("bm,mi,mj->bij", weights[enough], features, features)
    right = np.einsum("bm,m,mi->bi", weights[enough], loss, features)
    out = np.full((len(weights), 3), np.nan)
    out[enough] = np.linalg.solve(gram, right[..., None])[..., 0] / np.array([scale**2, scale, 1.0])
    return out


def _log_tokens(log_n: Floats, params: Floats, tokens: Floats) -> Floats:
    """Log D of a budget at ``log_n``, straight between its rows, so that C = 6 N D need not hold."""
    sizes, index = np.unique(np.log(params), return_inverse=True)
    logs = np.bincount(index, np.log(tokens)) / np.bincount(index)
    inside = np.interp(log_n, sizes, logs)
    below = logs[0] + (log_n - sizes[0]) * (logs[1] - logs[0]) / (sizes[1] - sizes[0])
    above = logs[-1] + (log_n - sizes[-1]) * (logs[-1] - logs[-2]) / (sizes[-1] - sizes[-2])
    return np.where(log_n < sizes[0], below, np.where(log_n > sizes[-1], above, inside))

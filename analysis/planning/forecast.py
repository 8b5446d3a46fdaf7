"""What a sweep may be expected to show before it is run: simulated sweeps, refitted by the code that will fit it.

Each simulated sweep has the losses of one of the prior's laws with normal noise in log L, and is fitted as configured.
What counts is how far the fit lands from that law's own N*, D*, L* and exponents; those distances are laid about the
middle law, so the prior's spread enters as the spread of truths to be measured, not as an error of the measurement.
What is foretold is what fits will say: their median and quantiles. How far that median lies from the truth, as
Approach 2's does by the parabola's bias, stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.config import FitConfig, Quantity
from analysis.fitting.bootstrap import percentile
from analysis.fitting.curves import Curves
from analysis.fitting.envelope import fit_envelope, refit_envelope
from analysis.fitting.isoflop import fit_isoflop, refit_isoflop
from analysis.fitting.optimum import exponents, optimum
from analysis.fitting.parametric import fit_parametric, refit_parametric
from analysis.fitting.powerlaw import optimum_of_laws
from analysis.fitting.values import (
    Bools,
    Cost,
    Estimate,
    Floats,
    Ints,
    ParametricFit,
    Refused,
    finite,
    loss_of_laws,
)
from analysis.planning.extensions import errors_if_bent
from analysis.planning.information import Target, error_factor, standard_errors
from analysis.result import Optimum

MOST_LAWS = 16
"""Of the prior, for what is computed law by law: Approach 1, and the linearised errors."""
LEAST_GOOD = 0.5  # of the simulated fits: fewer give no interval


@dataclass(frozen=True, kw_only=True)
class Bias:
    """By how much the median of an approach's fits is off; NaN where too few of them know."""

    a: float
    """Of the exponent, as it is."""
    n_opt: tuple[float, ...]
    """At each target, of the logarithm."""
    d_opt: tuple[float, ...]
    loss_opt: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What one approach may be expected to give, were the prior's middle law the truth."""

    a: Estimate
    b: Estimate
    optima: tuple[Optimum, ...]
    """At each target: the median N*, D*, L* of fits, with the interval in which they will lie."""
    bias: Bias
    failed: float
    """Share of the simulated sweeps that gave no fit."""

    def to_dict(self) -> dict[str, Any]:
        """As plan.json has it."""
        out: dict[str, Any] = {"a": self.a.to_dict(), "b": self.b.to_dict(), "failed": self.failed}
        for name in ("n_opt", "d_opt", "loss_opt"):
            out[name] = [
                {"flops": at.budget, **getattr(at, name).to_dict(), "bias": finite(off)}
                for at, off in zip(self.optima, getattr(self.bias, name), strict=True)
            ]
        out["a"]["bias"] = finite(self.bias.a)
        return out


@dataclass(frozen=True, kw_only=True)
class BudgetShare:
    """What one budget costs and adds."""

    budget: float
    points: int
    cost: float
    """FLOPs of its points."""
    share: float
    """Of the sweep's."""
    error: float
    """Linearised standard error of log N* at the largest target by Approach 3 without this budget; infinite where that
    is then open."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Expected intervals by approach, and budget by budget what adds to them."""

    level: float
    replicates: int
    """Simulated sweeps."""
    noise: float
    targets: tuple[float, ...]
    """C at which optima are stated."""
    envelope: Expected | Refused
    isoflop: Expected | Refused
    parametric: Expected | Refused
    error: float
    """Linearised standard error of log N* at the largest target, by Approach 3 on all budgets."""
    budgets: tuple[BudgetShare, ...]
    bent: dict[str, float]
    """The same error if the law were bent in one of the ways of :mod:`analysis.planning.extensions`, and the fit knew
    in which but not how far: what the form is trusted for."""

    @property
    def approaches(self) -> dict[str, Expected | Refused]:
        """By name, in Hoffmann's order."""
        return {"envelope": self.envelope, "isoflop": self.isoflop, "parametric": self.parametric}

    def to_dict(self) -> dict[str, Any]:
        """As plan.json has it."""
        return {
            "level": self.level,
            "replicates": self.replicates,
            "noise": self.noise,
            "targets": list(self.targets),
            "approaches": {name: found.to_dict() for name, found in self.approaches.items()},
            "error": finite(self.error),
            "bent": {name: finite(error) for name, error in self.bent.items()},
            "budgets": [
                {name: finite(float(getattr(at, name))) for name in ("budget", "points", "cost", "share", "error")}
                for at in self.budgets
            ],
        }


def forecast(
    params: Floats,
    tokens: Floats,
    flops: Floats,
    budget: Floats,
    laws: Floats,
    *,
    noise: float,
    targets: tuple[float, ...],
    cost: Cost,
    config: FitConfig | None = None,
    curve: Ints | None = None,
    spent: Floats | None = None,
    tell: Callable[[str, float], None] = lambda message, share: None,
) -> Forecast:
    """Forecast a sweep's precision.

    Parameters
    ----------
    params, tokens, flops, budget
        (n,): N, D and C of the planned points, and their budgets as ``group_budgets`` gives them.
    laws
        (K, 5): the prior; the simulated sweeps go round its laws.
    noise
        Standard deviation of log L.
    targets
        C, in FLOPs.
    cost
        FLOPs per token.
    config
        How the sweep will be fitted: level, replicates, seed, objective, delta, form, E, valley, window, unbias, tail.
    curve
        (n,): which points are horizons of one run, by a number each run has; None where there are no horizons, and so
        no losses of decayed schedules for Approach 1 but at the end.
    spent
        (n,): FLOPs that each point adds to the sweep's, where that is not its C: points of a trunk share most of it.
    tell
        Hears what is computed and the share that is done.

    Returns
    -------
    Forecast
        For an approach that the design does not feed, why not.
    """
    config = config or FitConfig()
    at = np.asarray(targets, dtype=np.float64)
    rng = np.random.default_rng(config.seed)
    truth = laws[np.arange(config.replicates) % len(laws)]
    shift = noise * rng.standard_normal((config.replicates, len(params)))
    middle = laws[np.argsort(optimum(laws, cost, at.max())[0], kind="stable")[len(laws) // 2]]
    sweep = _Sweep(params, tokens, flops, budget, middle, truth, shift, at, cost, config)
    few = laws[np.unique(np.linspace(0, len(laws) - 1, MOST_LAWS).astype(int))]
    tell("what each budget adds", 0.0)
    error, shares = _shares(sweep, few, noise, flops if spent is None else spent)
    tell(f"refitting {config.replicates} simulated sweeps: valleys", 0.1)
    valleys = _isoflop(sweep)
    tell(f"refitting {config.replicates} simulated sweeps: surfaces", 0.4)
    surfaces = _parametric(sweep)
    tell(f"refitting {config.replicates} simulated sweeps: envelopes", 0.7)
    return Forecast(
        level=config.level,
        replicates=config.replicates,
        noise=noise,
        targets=tuple(targets),
        envelope=_envelope(sweep, few, curve),
        isoflop=valleys,
        parametric=surfaces,
        error=error,
        budgets=shares,
        bent=errors_if_bent(params, tokens, middle, _farthest(sweep), noise * error_factor(config, noise), cost),
    )


def _farthest(sweep: _Sweep) -> Target:
    return Target(quantity=Quantity.n_opt, flops=float(sweep.targets.max()))


@dataclass(frozen=True, eq=False)
class _Sweep:
    """Simulated sweeps: n points, R replicates."""

    params: Floats
    tokens: Floats
    flops: Floats
    budget: Floats
    middle: Floats
    """(5,): the prior's law of median N*."""
    truth: Floats
    """(R, 5): the law behind each."""
    noise: Floats
    """(R, n)."""
    targets: Floats
    cost: Cost
    config: FitConfig

    def loss(self, law: Floats) -> Floats:
        """(n,) or (K, n): without noise, of a law (5,) or laws (K, 5)."""
        return loss_of_laws(law[..., None, :], np.log(self.params), np.log(self.tokens))

    def surface(self) -> ParametricFit | Refused:
        """Approach 3 without noise."""
        how = self.config
        return fit_parametric(
            self.params,
            self.tokens,
            self.loss(self.middle),
            objective=how.objective,
            delta=how.delta,
            form=how.form,
            E=how.E,
            starts=how.starts,
        )

    def shift(self) -> Floats:
        """(R, n): log loss above the middle law's."""
        return np.asarray(np.log(self.loss(self.truth) / self.loss(self.middle)) + self.noise)

    def expected(self, a: Floats, b: Floats, optima: tuple[Floats, Floats, Floats], truth: Floats) -> Expected:
        """From the fits' (R,) exponents and (R, targets) optima, and the laws behind them."""
        level = self.config.level
        real_a, real_b = exponents(truth, self.cost)
        middle_a, middle_b = exponents(self.middle, self.cost)
        good = np.isfinite(a)
        enough = good.mean() >= LEAST_GOOD
        with np.errstate(invalid="ignore"):
            real = optimum(truth, self.cost, self.targets)
            off = [np.log(found / one) for found, one in zip(optima, real, strict=True)]
        values = optimum(self.middle, self.cost, self.targets)

        def estimate(fits: Floats, law: float) -> Estimate:
            return percentile(fits, finite(_median(fits)), level) if enough else Estimate(value=law)

        def at_target(part: int, i: int) -> Estimate:
            law = float(values[part][i])
            return estimate(law * np.exp(off[part][:, i]), law)

        def biases(part: int) -> tuple[float, ...]:
            return tuple(_median(column) if enough else np.nan for column in off[part].T)

        return Expected(
            a=estimate(middle_a + a - real_a, float(middle_a)),
            b=estimate(middle_b + b - real_b, float(middle_b)),
            optima=tuple(
                Optimum(budget=float(c), n_opt=at_target(0, i), d_opt=at_target(1, i), loss_opt=at_target(2, i))
                for i, c in enumerate(self.targets)
            ),
            bias=Bias(
                a=_median(a - real_a) if enough else np.nan, n_opt=biases(0), d_opt=biases(1), loss_opt=biases(2)
            ),
            failed=float(1 - good.mean()),
        )


def _median(values: Floats) -> float:
    """Of those that are known; NaN for none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else np.nan


def _parametric(sweep: _Sweep) -> Expected | Refused:
    loss, start = sweep.loss(sweep.middle), sweep.surface()
    if isinstance(start, Refused):
        return start
    theta, good = refit_parametric(
        sweep.params, sweep.tokens, loss, np.ones_like(sweep.noise), start, shift=sweep.shift()
    )
    theta = np.where(good[:, None], theta, np.nan)
    return sweep.expected(*exponents(theta, sweep.cost), optimum(theta, sweep.cost, sweep.targets), sweep.truth)


def _isoflop(sweep: _Sweep) -> Expected | Refused:
    config, loss, surface = sweep.config, sweep.loss(sweep.middle), sweep.surface()
    rows = (sweep.params, sweep.tokens)
    fit = fit_isoflop(
        *rows,
        sweep.flops,
        loss,
        sweep.budget,
        window=config.window,
        valley=config.valley,
        surface=None if isinstance(surface, Refused) else surface,
        cost=sweep.cost,
        unbias=config.unbias,
    )
    if isinstance(fit, Refused):
        return fit
    values, _ = refit_isoflop(*rows, loss, np.ones_like(sweep.noise), fit, shift=sweep.shift())
    return _of_power_laws(sweep, values, fit.laws.flops_range, sweep.truth)


def _envelope(sweep: _Sweep, laws: Floats, curve: Ints | None) -> Expected | Refused:
    """Law by law, since curves are moved as wholes; a run's horizons share its mean noise."""
    if curve is None:
        return Refused(reason="there are no horizons, so no losses of decayed schedules along a run.")
    names, run = np.unique(curve, return_inverse=True)
    labels = tuple(map(str, names))
    rows = {"params": sweep.params, "tokens": sweep.tokens, "flops": sweep.flops, "progress": np.ones(len(run))}

    def curves(law: Floats) -> Curves:
        return Curves.of_rows(run_id=np.array(labels, dtype=object)[run], loss=sweep.loss(law), **rows)

    fit = fit_envelope(curves(sweep.middle), tail=sweep.config.tail)
    if isinstance(fit, Refused):
        return fit
    truth = laws[np.arange(len(sweep.noise)) % len(laws)]
    moved = np.stack([sweep.noise[:, run == i].mean(axis=1) for i in range(len(names))], axis=1)
    values = np.full((len(moved), 6), np.nan)
    for i, law in enumerate(laws):
        shift = moved[i :: len(laws)]
        present = np.ones(shift.shape, dtype=np.bool_)
        values[i :: len(laws)], _ = refit_envelope(curves(law), present, labels, tail=sweep.config.tail, shift=shift)
    return _of_power_laws(sweep, values, fit.laws.flops_range, truth)


def _of_power_laws(sweep: _Sweep, values: Floats, reach: tuple[float, float], truth: Floats) -> Expected:
    optima = optimum_of_laws(values[:, None], reach, sweep.targets)
    return sweep.expected(values[:, 1], values[:, 3], optima, truth)


def _shares(sweep: _Sweep, laws: Floats, noise: float, spent: Floats) -> tuple[float, tuple[BudgetShare, ...]]:
    """The linearised error of log N* at the largest target, and each budget's share in cost and in that."""
    config, target = sweep.config, _farthest(sweep)
    factor = error_factor(config, noise)

    def error(kept: Bools) -> float:
        n, d = sweep.params[kept], sweep.tokens[kept]
        return factor * float(standard_errors(n, d, laws, (target,), noise, sweep.cost, form=config.form)[0])

    everything = np.ones(len(sweep.flops), dtype=np.bool_)
    shares = tuple(
        BudgetShare(
            budget=float(at),
            points=int((sweep.budget == at).sum()),
            cost=float(spent[sweep.budget == at].sum()),
            share=float(spent[sweep.budget == at].sum() / spent.sum()),
            error=error(sweep.budget != at),
        )
        for at in np.unique(sweep.budget)
    )
    return error(everything), shares

"""What is held for true before a sweep has been run: a law with its uncertainty, and the noise of its losses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analysis.config import FitConfig
from analysis.fitting.parametric import LEAST_SCATTER, fit_parametric, refit_parametric
from analysis.fitting.values import Cost, Floats, ParametricFit, Refused
from analysis.laws.forms import Law, SurfaceLaw
from analysis.laws.law import find_law, law_from_config
from analysis.planning.noise import LEAST_FREEDOM, Noise, estimate_noise, pure_error, with_misfit
from analysis.store import read_fit
from sweeps.app import config_dirs
from sweeps.config import CentreConfig, Config
from sweeps.paths import SweepFolder
from sweeps.planning.results import Results, read_results, sweeps_of
from trainer.errors import UserError
from trainer.shape import ParamCount

ASSUMED_NOISE = 0.005
"""Of log loss, where nothing tells it: about what seeds of models of 1e8 parameters and more differ by."""
LEAST_RESIDUALS = 9
"""Results of one family whose residuals say something of the noise, and whose fit of their law."""
RESULTS = "results"
LAWS = 200
"""Replicates of a fit to the results."""
SUMS, SHARES = (0.5, 0.7, 0.9), (0.15, 0.3, 0.5)
"""Of a law of which only N*(C) is stated: alpha + beta, and the reducible share of the loss at the stated point, over
what published laws and small models span."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prior:
    """Laws, one of which is true."""

    laws: Floats
    """(K, 5): log A, log B, log E, alpha, beta."""
    params: ParamCount
    """How they count N."""
    source: str
    """Where they are from, to be read after "prior:"."""
    level_known: bool = True
    """Whether losses mean something, or only their ratios."""


def find_prior(config: Config, folder: SweepFolder, cost: Cost | None = None) -> Prior:
    """The prior of a sweep: ``forecast.prior``, else ``law=``, else what ``sweep.centre`` says.

    Parameters
    ----------
    cost
        FLOPs per token of the sweep's sizes, non-embedding, by which a stated N*(C) becomes a law; None for 6 N.

    Raises
    ------
    UserError
        If none is stated, it is no surface L(N, D), or it cannot be read or fitted.
    """
    stated, centre = config.forecast.prior, config.sweep.centre
    if stated == RESULTS:
        return prior_of_results(read_results([folder], config.fit.params), config.fit)
    if stated is not None:
        return _of_fit(Path(stated))
    if config.law.name is not None:
        return _of_law(law_from_config(config.law))
    if centre.law is not None:
        return _of_law(find_law(centre.law, config_dirs()))
    if centre.n_opt is not None:
        return _of_centre(centre, cost or Cost())
    raise UserError(
        "a forecast starts from a law: state law=<name>, forecast.prior=<a folder that fit wrote>, or sweep.centre."
    )


def prior_of_results(results: Results, fit: FitConfig) -> Prior:
    """The law of a sweep's own results, with the spread of refits of drawn points.

    Raises
    ------
    UserError
        If they are too few, or support no law.
    """
    rows = results.largest_family()
    found = _law_of(rows, fit)
    loose = "" if isinstance(found, Refused) else ", ".join(found.certificate.unidentified)
    if isinstance(found, Refused) or loose:
        why = found.reason.rstrip(".") if isinstance(found, Refused) else f"the results do not determine {loose}"
        raise UserError(f"forecast.prior={RESULTS}: {why}; state law=<name> until there are more.")
    weights = np.random.default_rng(fit.seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), LAWS)
    theta, good = refit_parametric(rows.params, rows.tokens, rows.loss, weights.astype(np.float64), found)
    laws = theta[good] if good.mean() > 0.5 else found.array()[None]
    return Prior(laws=laws, params=fit.params, source=f"a fit of the sweep's own {len(rows)} results")


def find_noise(config: Config, folder: SweepFolder) -> Noise:
    """The noise of log loss: as stated, else by repeated seeds, else by residuals, of the sweep or its neighbours.

    Raises
    ------
    UserError
        If a stated one is no positive number.
    """
    stated = config.forecast.noise
    if stated is not None:
        if not 0 < stated < 1:
            raise UserError(f"forecast.noise={stated:g} must lie between 0 and 1: the sd of log loss, e.g. 0.005.")
        return Noise(value=stated, freedom=0, source="given")
    sweeps = sweeps_of(folder)
    for scope in (sweeps[:1], sweeps):
        pooled = _of_seeds(read_results(scope, config.fit.params))
        if pooled is not None:
            law = _law_of(read_results([folder], config.fit.params).largest_family(), config.fit)
            return with_misfit(pooled, law) if isinstance(law, ParametricFit) else pooled
    for scope in (sweeps[:1], sweeps):
        rows = read_results(scope, config.fit.params).largest_family()
        law = _law_of(rows, config.fit)
        if isinstance(law, ParametricFit):
            found = estimate_noise(rows.params, rows.tokens, rows.loss, law)
            return replace(found, value=max(found.value, LEAST_SCATTER))
    return Noise(value=ASSUMED_NOISE, freedom=0, source="assumed: nothing in the root tells it")


def _of_seeds(results: Results) -> Noise | None:
    parts = [
        pure_error(results.params[one], results.tokens[one], np.log(results.loss[one]))
        for one in (results.family == number for number in np.unique(results.family))
    ]
    squares, freedom = (sum(column) for column in zip(*parts, strict=True)) if parts else (0.0, 0)
    if freedom < LEAST_FREEDOM:
        return None
    value = max(math.sqrt(squares / freedom), LEAST_SCATTER)
    return Noise(value=value, freedom=int(freedom), source="seeds")


def _law_of(rows: Results, fit: FitConfig) -> ParametricFit | Refused:
    if len(rows) < LEAST_RESIDUALS:
        return Refused(reason=f"{len(rows)} results are too few for a law and its spread; {LEAST_RESIDUALS} are needed")
    return fit_parametric(
        rows.params, rows.tokens, rows.loss, objective=fit.objective, delta=fit.delta, form=fit.form, E=fit.E
    )


def _of_law(law: Law) -> Prior:
    if not isinstance(law, SurfaceLaw) or law.E <= 0:
        lacks = "has E=0" if isinstance(law, SurfaceLaw) else "knows N*(C) but no loss off it"
        raise UserError(f"law={law.name} {lacks}; a forecast needs L(N, D) with all five numbers: choose another law=.")
    return Prior(laws=law.array()[None], params=law.params, source=f"law {law.name}")


def _of_fit(path: Path) -> Prior:
    fit = read_fit(path)
    laws = fit.replicates.get(fit.key("parametric"), np.empty((0, 5)))
    if not len(laws):
        raise UserError(f"forecast.prior={path} has no Approach 3 with replicates; fit again, or state law=<name>.")
    params = ParamCount(fit.raw["conventions"]["params"])
    return Prior(laws=laws, params=params, source=f"the fit in {path}, {len(laws)} replicates")


def _of_centre(centre: CentreConfig, cost: Cost) -> Prior:
    """Laws whose N*(C) is the stated one; what else they are is spread over what laws have been seen to be."""
    assert centre.n_opt is not None and centre.at is not None
    log_n, a = math.log(centre.n_opt), centre.exponent
    log_d = math.log(centre.at / cost.coefficient) - cost.exponent * log_n
    laws = [_law_at(log_n, log_d, a, total, share, cost) for total, share in itertools.product(SUMS, SHARES)]
    return Prior(
        laws=np.array(laws),
        params=ParamCount.non_embedding,
        source=f"sweep.centre's N*(C), with what else published laws span ({len(laws)} laws)",
        level_known=False,
    )


def _law_at(log_n: float, log_d: float, a: float, total: float, share: float, cost: Cost) -> Sequence[float]:
    """The law with that N* and D*, exponent ``a``, alpha + beta = ``total``, and L = 1 there, of which ``share`` goes.

    From a = beta / (alpha + g beta); at the optimum alpha A / N^alpha = g beta B / D^beta.
    """
    g = cost.exponent
    ratio = (1 - g * a) / a  # alpha over beta
    beta = total / (1 + ratio)
    alpha = ratio * beta
    first = share * g * beta / (alpha + g * beta)
    return (
        math.log(first) + alpha * log_n,
        math.log(share - first) + beta * log_d,
        math.log(1 - share),
        alpha,
        beta,
    )

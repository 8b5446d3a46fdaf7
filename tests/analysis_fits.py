"""A fit that holds everything a report can show, for the tests of report, figures and tables."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from analysis_surfaces import isoflop_design, tables

from analysis.config import FitConfig
from analysis.fit import fit_tables
from analysis.fitting.values import Estimate, Profile, Refused, RepeatedFit
from analysis.ingest.tables import Exclusion, Tables
from analysis.result import FitResult, Parametric


@cache
def sweep() -> Tables:
    """Five budgets of nine sizes; the largest lacks the five smaller ones, so that its minimum lies outside."""
    design = isoflop_design(np.geomspace(1e17, 1e21, 5), sizes=9, noise=0.002)
    keep = np.r_[np.arange(36), 41:45]
    params, tokens, flops, loss = (column[keep] for column in design)
    made = tables(
        params, tokens, flops, loss, params_non_embedding=params - 30 * params**0.55, schedule="cosine", corpus="zipf-1"
    )
    left = (Exclusion(row="run900", reason="diverged"), Exclusion(row="run901", reason="failed"))
    return replace(made, excluded=left, notes=("Schedules are taken from the run folders.",))


@cache
def plain_fit() -> FitResult:
    """What a fit of the sweep gives."""
    return fit_tables(sweep(), FitConfig(replicates=100))


@cache
def full_fit() -> FitResult:
    """The same with what must be asked for: profiles, ways to resample, repeated data; these are made up."""
    fit = plain_fit()
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    grid = np.linspace(0.8, 1.2, 41)
    profiles = {
        name: Profile(
            name=name,
            estimate=Estimate(value=value, low=0.9 * value, high=None),
            grid=value * grid,
            deviance=np.where(grid < 1, 384 * (grid - 1) ** 2, 0.5),
            limit=3.841,
        )
        for name, value in (("a", 0.45), ("A", law.fit.A))
    }
    epochs = np.resize([1, 1, 4, 16], len(fit.points))
    tokens = fit.points["tokens"].to_numpy(dtype=float)
    repeated = RepeatedFit(
        law=law.fit,
        r_d=Estimate(value=15.4, low=11.0, high=21.0),
        r_n=Estimate(value=5.31),
        rows=16,
        objective=0.0123,
        residuals=law.fit.residuals,
        tokens=tokens,
        unique_tokens=tokens / epochs,
        starts=12,
        starts_agreeing=7,
    )
    return replace(
        fit,
        primary=replace(fit.primary, parametric=replace(law, profiles=profiles)),
        points=fit.points.assign(unique_tokens=fit.points["tokens"] / epochs),
        compared={
            "cases": {"isoflop": Estimate(value=0.45, low=0.4, high=0.5), "parametric": law.a},
            "subsample": {"parametric": Estimate(value=0.45)},
        },
        repeated=repeated,
        config=FitConfig(replicates=100),
    )


def without(fit: FitResult, *names: str) -> FitResult:
    """The fit with some approaches refused."""
    refused = {name: Refused(reason=f"{name} does not suit.") for name in names}
    primary = replace(fit.primary, **refused)
    return replace(fit, primary=primary, by_convention=(primary, *fit.by_convention[1:]))


def unconverged(fit: FitResult) -> FitResult:
    """The fit with an Approach 3 that did not reach its optimum."""
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    certificate = replace(law.fit.certificate, converged=False, gradient_norm=0.02)
    primary = replace(fit.primary, parametric=replace(law, fit=replace(law.fit, certificate=certificate)))
    return replace(fit, primary=primary, by_convention=(primary, *fit.by_convention[1:]))

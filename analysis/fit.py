"""From tables to a :class:`FitResult`: clean, count N and C in each convention, fit, resample, test, warn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from analysis.approaches import Surface, fit_approaches, fit_law
from analysis.backtest import backtest
from analysis.config import FitConfig, Form, Resample
from analysis.fitting.bootstrap import METHODS, resample
from analysis.fitting.curves import Curves
from analysis.fitting.repeated import OVERRUN, fit_repeated
from analysis.fitting.values import Cost, Estimate, ParametricFit, Refused, RepeatedFit, Rows
from analysis.ingest.clean import clean, flops_convention, keep_fresh, params_conventions, usable_rows
from analysis.ingest.fill import fill_missing
from analysis.ingest.tables import Tables
from analysis.result import Approach, ConventionFit, FitResult, Interval
from analysis.study import OTHER_REPLICATES, Study, comparable_curves
from analysis.warn import warnings
from trainer.errors import UserError
from trainer.shape import ParamCount

__all__ = ["FitConfig", "fit_tables"]

SUBSAMPLES = 100  # as Hoffmann et al. 2022 took


def fit_tables(tables: Tables, config: FitConfig, group: Mapping[str, str] | None = None) -> FitResult:
    """Fit all three approaches to a source's rows, under every pair of N and C conventions that all rows carry.

    Parameters
    ----------
    group
        Columns and values that chose these rows, for the record.

    Raises
    ------
    UserError
        If a setting is out of range, corpora are mixed, or no row is usable.
    """
    config.check()
    tables = fill_missing(tables, config.fill)
    meant = usable_rows(tables.points)
    flops = flops_convention(meant, config.flops)
    params = params_conventions(meant, config.params)[0]
    if params is not config.params and config.params is not ParamCount.total:  # total is the default
        wanted = config.params.value
        raise UserError(
            f"fit.params={wanted}: the rows do not count N so; map columns.params_{wanted}, or choose fit.params=total."
        )
    usable = clean(tables, params, flops)
    cleaned = keep_fresh(usable, config.epochs)
    points = cleaned.points
    if points.empty:
        raise UserError(_nothing(cleaned))
    logged, note = comparable_curves(cleaned)
    study = Study(points, logged, config)
    rows = study.rows(params, flops)
    law = fit_law(rows, config)
    known = None if isinstance(law, Refused) else law
    resamples = resample(rows, config.resample, config.replicates, config.seed, known)
    primary = study.fit(params, flops, Surface.of(rows, law, resamples), resamples)
    fits = (primary, *study.others(params, flops, resamples))
    curves = study.curves(params, flops)
    test = backtest(primary, curves, config)
    return FitResult(
        source=tables.source,
        primary=primary,
        by_convention=fits,
        interval=Interval(
            method=METHODS[config.resample], level=config.level, replicates=config.replicates, seed=config.seed
        ),
        points=points,
        excluded=cleaned.excluded,
        backtest=test,
        warnings=warnings(fits, points, test, config.resample),
        compared=_compared(primary, law, curves, config) if config.compare else {},
        repeated=_repeated(
            Study(usable.points, logged, config).rows(params, flops), usable.points, primary.cost, config
        ),
        notes=(*cleaned.notes, *note),
        group=dict(group or {}),
        config=config,
    )


def _compared(
    primary: ConventionFit, law: ParametricFit | Refused, curves: Curves, config: FitConfig
) -> dict[str, dict[str, Estimate]]:
    """The exponent a under every way to resample that the rows allow."""
    out: dict[str, dict[str, Estimate]] = {}
    known = None if isinstance(law, Refused) else law
    config = replace(config, profile=False)
    alone = len(set(primary.rows.cluster_id)) == len(primary.rows)
    for how in Resample:
        if how is Resample.clusters and alone:  # the same as cases
            continue
        try:
            count = SUBSAMPLES if how is Resample.subsample else OTHER_REPLICATES
            resamples = resample(primary.rows, how, min(config.replicates, count), config.seed, known)
        except UserError:  # these rows have no seeds, or too few sizes, to draw
            continue
        surface = Surface.of(primary.rows, law, resamples)
        found = fit_approaches(primary.rows, curves, resamples, surface, primary.conventions, config)
        out[how.value] = {
            name: at.a for name, at in found.approaches.items() if isinstance(at, Approach) and at.quotable
        }
    return out


def _repeated(rows: Rows, points: pd.DataFrame, cost: Cost, config: FitConfig) -> RepeatedFit | Refused | None:
    """What repeated tokens are worth, where any row repeats its data."""
    unique = points["unique_tokens"].to_numpy(copy=True)
    if not (rows.tokens > unique * OVERRUN).any():
        return None
    return fit_repeated(
        rows.params,
        rows.tokens,
        unique,
        rows.loss,
        delta=config.delta,
        starts=config.starts,
        form=Form.tied if config.form is Form.tied else Form.free,
        cost=cost,
        replicates=min(config.replicates, OTHER_REPLICATES),
        level=config.level,
        seed=config.seed,
    )


def _nothing(tables: Tables) -> str:
    reasons = pd.Series([out.reason for out in tables.excluded]).value_counts()
    if reasons.empty:
        return f"{tables.source} holds no points; let runs finish, or name another source."
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.head(3).items())
    return f"{tables.source} holds no usable row ({listed}); check columns., where= or the runs."

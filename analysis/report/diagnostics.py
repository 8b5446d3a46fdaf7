"""The report's charts of how far to trust a fit: residuals, profiles, backtest, ways to resample, repeated data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.fitting.values import Estimate, Floats, Profile, RepeatedFit
from analysis.report import plot, style, views
from analysis.report.plot import Key, Panel
from analysis.result import Backtest, ConventionFit, Holdout, Parametric
from analysis.text import SHORT_TITLES, count_text, estimate_text, flops_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_HELD = 150
"""Held-out rows drawn for one origin; more bars hide each other."""
RESIDUAL = "L, measured / fitted − 1 (%)"
PROFILED = ("a", "alpha", "beta", "E", "A", "B")
ZERO: dict[str, Any] = {"color": "#444", "width": 1}


def residuals(fit: ConventionFit, approach: Parametric) -> list[Panel]:
    """Approach 3's residuals against C, N and D, and beside those of a normal distribution."""
    rows, percent = fit.rows, views.residual_percent(approach)
    index, colour = np.arange(len(rows)), style.COLOURS["parametric"]
    labels = {
        "C": (rows.flops, style.flops_label(fit.conventions), flops_text),
        "N": (rows.params, style.params_label(fit.conventions), count_text),
        "D": (rows.tokens, style.tokens_label(), count_text),
    }
    y = {"title": RESIDUAL, "zeroline": True}
    panels = []
    for symbol, (x, label, text) in labels.items():
        figure = plot.blank(plot.log_axis(label, *style.padded(x, 1.3), text, 5), y)
        plot.points(figure, fit, index, x, percent, colour)
        panels.append(Panel(f"Residuals against {symbol}", figure))
    order, quantiles, line = views.normal_quantiles(percent)
    figure = plot.blank({"title": "quantile of a normal distribution"}, y)
    plot.line(figure, quantiles, line, ZERO)
    sorted_rows = np.empty_like(quantiles)
    sorted_rows[order] = quantiles  # points() takes values in the order of the rows
    plot.points(figure, fit, index, sorted_rows, percent, colour)
    return [*panels, Panel("Residuals against a normal distribution", figure)]


def profiles(found: Mapping[str, Profile]) -> list[Panel]:
    """How much worse the fit gets as one number is held; the interval is where it stays under the line."""
    panels = []
    for name in (name for name in PROFILED if name in found):
        at = found[name]
        limit = at.limit
        shown = np.isfinite(at.deviance) & (at.deviance <= 3 * limit)
        # Scales may span decades (A, B) or cross 1 (a): logarithmic where it is wide.
        x, wide = at.grid[shown], at.grid[shown].min() > 0 and at.grid[shown].max() > 8 * at.grid[shown].min()
        across = plot.log_axis(name, *style.padded(x, 1.02), "{:g}".format, 5) if wide else {"title": name}
        figure = plot.blank(across, {"title": "likelihood-ratio statistic", "range": [-0.1, 3 * limit]})
        plot.line(figure, x, at.deviance[shown], {"color": style.COLOURS["parametric"], "width": 2})
        figure.add_hline(limit, line={"color": "#444", "width": 1, "dash": "dot"})
        for end in (at.estimate.low, at.estimate.value, at.estimate.high):
            if end is not None:
                dash = "solid" if end == at.estimate.value else "dot"
                figure.add_vline(end, line={"color": "#888", "width": 1, "dash": dash})
        panels.append(Panel(f"{name} = {estimate_text(at.estimate, '{:.4g}'.format)}", figure))
    return panels


def backtest(test: Backtest, fit: ConventionFit) -> list[Panel]:
    """What fits to the smaller budgets foretold of the larger ones: a panel for the loss, and one for each N*."""
    panels = []
    for name, held in views.foretold(test).items():
        title = "Loss, Approach 3" if name == "loss" else f"N*, {style.TITLES[name]}"
        panels.append(Panel(title, _foretold(held, fit, views.origins(test))))
    return panels


def origin_keys(test: Backtest) -> list[Key]:
    """What the colours of a backtest stand for."""
    among = views.origins(test)
    return [Key(f"fitted to {flops_text(at)}", plot.shade(at, among)) for at in among.tolist()]


def _foretold(held: Sequence[Holdout], fit: ConventionFit, origins: Floats) -> Figure:
    """Measured over predicted at each C, in the prediction interval; a colour for each origin."""
    ends = style.padded(np.concatenate([at.flops for at in held]), 1.6)
    y = {"title": "measured / predicted − 1 (%)", "zeroline": True}
    figure = plot.blank(plot.flops_axis(fit.conventions, *ends), y | {"range": views.deviation_ends(held)})
    for number, at in enumerate(held):
        kept = views.evenly(len(at.measured), MOST_HELD)
        beside = at.flops[kept] * views.offset(number, len(held), ends)
        measured, low, high = (values[kept] for values in views.deviations(at))
        colour, label = plot.shade(at.fitted_to, origins), f"fitted to {flops_text(at.fitted_to)}"
        bars = {"type": "data", "array": plot.short(high), "arrayminus": plot.short(-low), "width": 2, "thickness": 1}
        middle = np.zeros(len(kept))
        plot.dots(figure, beside, middle, {"size": 1, "color": colour}, None, error_y=bars)
        texts = [
            f"{label}\nC {flops_text(at.flops[i])}\nmeasured {_number(at.measured[i])}"
            f"\npredicted {_number(at.predicted[i])} ({_number(at.low[i])} to {_number(at.high[i])})"
            for i in kept
        ]
        marker = {"size": 7, "color": colour, "symbol": "diamond", "line": {"color": "white", "width": 0.5}}
        plot.dots(figure, beside, measured, marker, texts)
    return figure


def compared(found: Mapping[str, Mapping[str, Estimate]]) -> list[Panel]:
    """The interval of a under every way to resample."""
    names = list(found)
    figure = plot.blank({"title": "a, of N* ∝ C^a"}, {"tickvals": list(range(len(names))), "ticktext": names})
    figure.update_yaxes(range=[len(names) - 0.5, -0.5])
    for number, (name, title) in enumerate(SHORT_TITLES.items()):
        known = [(i, found[how][name]) for i, how in enumerate(names) if name in found[how]]
        if not known:
            continue
        # None becomes NaN, which is not drawn
        value, low, high = np.array([(one.value, one.low, one.high) for _, one in known], dtype=np.float64).T
        at = np.array([i + 0.22 * (number - 1) for i, _ in known])
        bars = {"type": "data", "array": plot.short(high - value), "arrayminus": plot.short(value - low), "width": 3}
        texts = [f"{title}, {names[i]}\na = {estimate_text(one)}" for i, one in known]
        marker = {"size": 6, "color": style.COLOURS[name]}
        plot.dots(figure, value, at, marker, texts, error_x=bars)
    return [Panel("Intervals of a by what is resampled", figure)]


def approach_keys() -> list[Key]:
    """What the colours of the approaches stand for."""
    return [Key(title, style.COLOURS[name]) for name, title in style.TITLES.items()]


def repeated(found: RepeatedFit) -> list[Panel]:
    """What repeated tokens are worth, and the residuals of that law against the repetitions."""
    r_d = found.r_d.value
    epochs = np.clip(found.tokens / found.unique_tokens, 1.0, None)
    most = max(float(epochs.max()), 2.0)
    x = plot.log_axis("epochs: D / unique tokens", 1 / 1.1, most * 1.2, "{:g}".format)
    panels = []
    if r_d is not None and r_d > 0:
        grid = np.geomspace(1, most, views.FRONTIER_POINTS)
        worth = 1 + r_d * -np.expm1(-(grid - 1) / r_d)
        figure = plot.blank(x, plot.log_axis("worth of D / unique tokens", 1 / 1.1, most * 1.2, "{:g}".format))
        plot.line(figure, grid, grid, {"color": "#888", "width": 1, "dash": "dot"})
        plot.line(figure, grid, worth, {"color": style.COLOURS["parametric"], "width": 2})
        panels.append(Panel("What repeated tokens are worth, in fresh ones", figure))
    figure = plot.blank(x, {"title": RESIDUAL, "zeroline": True})
    marker = {"size": 5, "color": style.COLOURS["parametric"]}
    plot.dots(figure, epochs, 100 * np.expm1(found.residuals), marker, None)
    return [*panels, Panel("Residuals of the law of repeated data", figure)]


def _number(value: float) -> str:
    return count_text(value) if value >= 1000 else f"{value:.4g}"

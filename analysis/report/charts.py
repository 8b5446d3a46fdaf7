"""The report's charts of the three approaches: a panel for each view, so that a phone stacks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.fitting.values import Floats
from analysis.laws.law import Law
from analysis.laws.models import PublishedModel
from analysis.report import labels, plot, style, views
from analysis.report.curves import curve_window, training_curves
from analysis.report.plot import Key, Panel
from analysis.result import ConventionFit, Envelope, Isoflop, Parametric
from analysis.text import count_text, flops_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SYMBOLS = ("N*", "D*", "L*")
LETTER, LINE = 0.027, 0.065
"""Of a chart as narrow as on a phone: what a letter and a line of a label take."""
GREY = "#888"


def keys(fit: ConventionFit, laws: Sequence[Law]) -> list[Key]:
    """What the lines of a frontier stand for."""
    own = [Key(style.TITLES[name], style.COLOURS[name], style.DASHES[name]) for name in views.fitted(fit)]
    return own + [Key(style.law_label(law, fit.conventions), _law_colour(i), "dotted") for i, law in enumerate(laws)]


def frontier(fit: ConventionFit, level: float, laws: Sequence[Law]) -> list[Panel]:
    """N*, D* and L* against C: all approaches with their bands, published laws dotted."""
    flops = views.frontier_flops(fit)
    bands = {name: views.frontier(fit, at, flops, level) for name, at in views.fitted(fit).items()}
    published = [views.law_frontier(law, flops) for law in laws]
    panels = []
    for which, symbol in enumerate(SYMBOLS):
        drawn = [] if which == 2 else [law[which] for law in published]  # other data, other tokens: another loss
        held = [at for found in bands.values() for at in found[which].extent] + drawn
        if not np.isfinite(np.concatenate(held)).any():
            continue
        figure = plot.blank(
            plot.flops_axis(fit.conventions, *style.padded(flops, 1.1)),
            plot.optimum_axis(fit.conventions, which, *style.padded(np.concatenate(held), 1.1)),
        )
        for name, found in bands.items():
            plot.band(figure, found[which], name)
        for i, (law, values) in enumerate(zip(laws[: len(drawn)], drawn, strict=True)):
            plot.line(figure, flops, values, _law_line(i), style.law_label(law, fit.conventions))
        figure.add_vline(float(fit.rows.flops.max()), line={"color": GREY, "width": 1})
        panels.append(Panel(f"{symbol} against C", figure))
    return panels


def beside_models(
    fit: ConventionFit, level: float, laws: Sequence[Law], models: Sequence[PublishedModel]
) -> list[Panel]:
    """N* and D* against C as far as published models reach, and these as dots (Hoffmann et al. 2022, figure 1)."""
    at = np.array([(model.flops, model.params, model.tokens) for model in models])
    flops = np.geomspace(
        min(at[:, 0].min(), fit.rows.flops.min()), max(at[:, 0].max(), fit.rows.flops.max()), views.FRONTIER_POINTS
    )
    bands = {name: views.frontier(fit, one, flops, level) for name, one in views.fitted(fit).items()}
    published = [views.law_frontier(law, flops) for law in laws]
    texts = [
        f"{one.name}\nN {count_text(one.params)}, D {count_text(one.tokens)}\nC {flops_text(one.flops)}"
        for one in models
    ]
    panels = []
    for which, symbol in enumerate(SYMBOLS[:2]):
        values = at[:, 1 + which]
        held = [found[which].value for found in bands.values()] + [law[which] for law in published]
        x, y = style.padded(flops, 1.5), style.padded(np.concatenate([*held, values]), 2.0)
        figure = plot.blank(plot.flops_axis(fit.conventions, *x), plot.optimum_axis(fit.conventions, which, *y))
        for name, found in bands.items():
            plot.band(figure, found[which], name)
        for i, (law, curve) in enumerate(zip(laws, published, strict=True)):
            plot.line(figure, flops, curve[which], _law_line(i), style.law_label(law, fit.conventions))
        figure.add_vline(float(fit.rows.flops.max()), line={"color": GREY, "width": 1})
        plot.dots(figure, at[:, 0], values, {"color": "#333", "size": 5}, texts)
        names = [one.name for one in models]
        free = labels.placed(labels.shares(at[:, 0], *x), labels.shares(values, *y), names, LETTER, LINE)
        for where in labels.POSITIONS:
            chosen = [i for i, one in enumerate(free) if one == where]
            if chosen:
                plot.names(figure, at[chosen, 0], values[chosen], [names[i] for i in chosen], where)
        panels.append(Panel(f"{symbol} against C, and published models", figure))
    return panels


def envelope(fit: ConventionFit, approach: Envelope, curves: pd.DataFrame | None, level: float) -> list[Panel]:
    """Approach 1: the curves and their envelope; then who holds it, against C, with its bend."""
    one, drawn = approach.fit, training_curves(fit, curves)
    x, y = curve_window(drawn, approach)
    loss_axis = plot.log_axis(style.loss_label(fit.conventions), *y, "{:g}".format)
    figure = plot.blank(plot.flops_axis(fit.conventions, *x), loss_axis)
    sizes = np.array([curve.params for curve in drawn] or one.params)
    for curve in drawn:
        text = f"{curve.run_id}\nN {count_text(curve.params)}"
        plot.curve(figure, curve.flops, curve.loss, {"color": plot.shade(curve.params, sizes), "width": 1}, text)
    marker = {"color": "black", "size": 3}
    plot.dots(figure, one.flops, one.loss, marker, None)
    plot.colour_bar(figure, sizes, "N", count_text)
    flops = np.geomspace(one.flops.min() / 1.3, one.flops.max() * 1.3, views.FRONTIER_POINTS)
    texts = [f"N {count_text(n)}\nC {flops_text(c)}" for n, c in zip(one.params, one.flops, strict=True)]
    found = _optima(fit, approach, "envelope", level, flops, one.flops, (one.params, one.tokens), marker, texts)
    plot.line(found[0].figure, *views.curvature_line(approach), {"color": "black", "width": 1, "dash": "dot"})
    return [Panel("Loss curves and their envelope", figure), *found]


def isoflop(fit: ConventionFit, approach: Isoflop, level: float) -> list[Panel]:
    """Approach 2: rows and valleys per budget, refused ones hollow; then the minima against C."""
    sizes = style.padded(fit.rows.params, 1.25)
    figure = plot.blank(plot.params_axis(fit.conventions, *sizes), plot.loss_axis(fit.conventions))
    budgets = np.array([valley.budget for valley in approach.fit.valleys])
    for valley in approach.fit.valleys:
        colour, refused = plot.shade(valley.budget, budgets), valley.refused
        symbol = "circle-open" if refused else "circle"
        plot.points(figure, fit, valley.rows, fit.rows.params, fit.rows.loss, colour, symbol, refused or "")
        if refused is None:
            plot.line(figure, *views.valley_line(fit, valley), {"color": colour, "width": 1.5})
    flops, params, tokens, lowest = views.minima(approach)
    marker: dict[str, Any] = {"color": "black", "size": 8, "symbol": "diamond", "line": {"color": "white", "width": 1}}
    texts = [
        f"C {flops_text(c)}\nN* {count_text(n)}\nD* {count_text(d)}\nL* {loss:.4f}"
        for c, n, d, loss in zip(flops, params, tokens, lowest, strict=True)
    ]
    plot.dots(figure, params, lowest, marker, texts)
    plot.colour_bar(figure, budgets, "C", flops_text)
    span = np.geomspace(flops.min() / 1.3, flops.max() * 1.3, views.FRONTIER_POINTS)
    found = _optima(fit, approach, "isoflop", level, span, flops, (params, tokens), marker, texts)
    return [Panel("Loss against N at each budget", figure), *found]


def parametric(fit: ConventionFit, approach: Parametric, level: float) -> list[Panel]:
    """Approach 3: the fitted surface with rows and frontier; slices along budgets."""
    return [
        Panel("The fitted loss and N*(C)", _contours(fit, approach, level)),
        Panel("The fitted loss along budgets", _slices(fit, approach)),
    ]


def _contours(fit: ConventionFit, approach: Parametric, level: float) -> Figure:
    at, rows = views.surface(fit, approach), fit.rows
    figure = plot.blank(
        plot.flops_axis(fit.conventions, at.flops[0], at.flops[-1]),
        plot.params_axis(fit.conventions, at.params[0], at.params[-1]),
    )
    levels = np.log10(at.levels)
    contours = {"start": levels[0], "end": levels[-1], "size": levels[1] - levels[0], "coloring": "lines"}
    figure.add_contour(
        x=plot.short(at.flops),
        y=plot.short(at.params),
        z=plot.short(np.log10(at.loss)),
        zmin=levels[0],
        zmax=levels[-1],
        contours=contours,
        line={"width": 1.2},
        colorscale=plot.colours(),
        showscale=False,
        hoverinfo="skip",
    )
    plot.band(figure, views.frontier(fit, approach, at.flops, level)[0], "parametric")
    shades = {"color": plot.short(np.log10(rows.loss)), "cmin": levels[0], "cmax": levels[-1]}
    plot.points(figure, fit, np.arange(len(rows)), rows.flops, rows.params, shades | {"colorscale": plot.colours()})
    plot.colour_bar(figure, at.levels, "L", "{:.3g}".format)
    return figure


def _slices(fit: ConventionFit, approach: Parametric) -> Figure:
    drawn = views.slices(fit, approach)
    sizes = style.padded(np.concatenate([at.params for at in drawn]), 1.1)
    figure = plot.blank(plot.params_axis(fit.conventions, *sizes), plot.loss_axis(fit.conventions))
    budgets = np.array([at.budget for at in drawn])
    for at in drawn:
        colour = plot.shade(at.budget, budgets)
        plot.line(figure, at.params, at.loss, {"color": colour, "width": 1.5})
        plot.points(figure, fit, at.rows, fit.rows.params, fit.rows.loss, colour)
    plot.colour_bar(figure, budgets, "C", flops_text)
    return figure


def _optima(
    fit: ConventionFit,
    approach: Envelope | Isoflop,
    name: str,
    level: float,
    span: Floats,
    flops: Floats,
    found: tuple[Floats, Floats],
    marker: dict[str, Any],
    texts: Sequence[str],
) -> list[Panel]:
    """N* and D* against C: the power law over ``span`` with both its bands, and what was ``found`` at ``flops``."""
    panels = []
    bands = views.frontier(fit, approach, span, level)
    for which, symbol in enumerate(SYMBOLS[:2]):
        at = bands[which]
        ends = _around([*at.extent, found[which]], [at.first, at.last])
        figure = plot.blank(
            plot.flops_axis(fit.conventions, *style.padded(span, 1.1)),
            plot.optimum_axis(fit.conventions, which, *ends),
        )
        plot.band(figure, at, name, measured=True)
        plot.dots(figure, flops, found[which], marker, texts)
        panels.append(Panel(f"{symbol} against C", figure))
    return panels


def _around(inner: Sequence[Floats], outer: Sequence[Floats]) -> tuple[float, float]:
    """Ends of a logarithmic axis that holds ``inner``, and of ``outer`` as much as leaves it half of the height."""
    low, high = style.padded(np.concatenate(inner), 1.1)
    least, most = style.padded(np.concatenate([*inner, *outer]), 1.1)
    room = (high / low) ** 0.5
    return max(least, low / room), min(most, high * room)


def _law_line(number: int) -> dict[str, Any]:
    return {"color": _law_colour(number), "dash": "dot"}


def _law_colour(number: int) -> str:
    return style.LAW_COLOURS[number % len(style.LAW_COLOURS)]

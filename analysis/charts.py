"""The report's interactive charts: the views of a fit as plotly figures, one per panel, so that a phone can stack them.

Every text that came from outside is escaped: plotly reads some HTML in labels. plotly is imported when one is drawn.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import views
from analysis.fits import Floats, Ints
from analysis.laws import Law
from analysis.result import Backtest, ConventionFit, Conventions, Envelope, Isoflop, Parametric
from analysis.text import count_text, flops_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHADES = 12
BRIGHTEST = 0.92
"""Of viridis: its last yellow cannot be seen on white."""
MOST_HOVERS = 1000
"""Rows that are named when pointed at; with more of them their names would outweigh the charts."""
DASHES = {"solid": "solid", "dashed": "dash", "dashdot": "dashdot"}


def frontier(fit: ConventionFit, level: float, laws: Sequence[Law]) -> list[Figure]:
    """N* and D* against C: all approaches with their bands, published laws dotted."""
    flops = views.frontier_flops(fit)
    bands = {name: views.frontier(fit, approach, flops, level) for name, approach in views.fitted(fit).items()}
    published = [views.law_frontier(law, flops) for law in laws]
    figures = []
    for which in (0, 1):
        lines = [at for band in bands.values() for at in views.extent(band[which])] + [law[which] for law in published]
        low, high = views.padded(np.concatenate(lines), 1.1)
        high *= (high / low) ** (0.08 * (len(bands) + len(laws)))  # room for the legend
        ends = views.padded(flops, 1.1)
        figure = _figure(
            _flops_axis(fit.conventions, *ends), _optimum_axis(fit.conventions, which, low, high), legend=True
        )
        for name, band in bands.items():
            _band(figure, band[which], name, views.TITLES[name])
        for i, (law, values) in enumerate(zip(laws, published, strict=True)):
            line = {"color": views.LAW_COLOURS[i % len(views.LAW_COLOURS)], "dash": "dot"}
            _line(figure, flops, values[which], html.escape(views.law_label(law, fit.conventions)), line)
        figure.add_vline(float(fit.rows.flops.max()), line={"color": "#888", "width": 1})
        figures.append(figure)
    return figures


def envelope(fit: ConventionFit, approach: Envelope, curves: pd.DataFrame | None, level: float) -> list[Figure]:
    """Approach 1: the curves and their envelope; then who holds it, against C."""
    one, drawn = approach.fit, views.training_curves(fit, curves)
    x, y = views.curve_window(drawn, approach)
    figure = _figure(
        _flops_axis(fit.conventions, *x),
        _log_axis(views.loss_label(fit.conventions), *y, "{:g}".format),
    )
    sizes = np.array([curve.params for curve in drawn] or one.params)
    for curve in drawn:
        colour = _shade(curve.params, sizes)
        hover = f"{html.escape(curve.run_id)}<br>N {count_text(curve.params)}<br>C %{{x:.3e}}<br>L %{{y:.4f}}"
        _scatter(
            figure,
            x=_short(curve.flops),
            y=_short(curve.loss),
            mode="lines",
            line={"color": colour, "width": 1},
            hovertemplate=hover + "<extra></extra>",
        )
    marker = {"color": "black", "size": 3}
    _scatter(figure, x=_short(one.flops), y=_short(one.loss), mode="markers", marker=marker, hoverinfo="skip")
    _colour_bar(figure, sizes, "N", count_text)
    flops = np.geomspace(one.flops.min() / 1.3, one.flops.max() * 1.3, views.FRONTIER_POINTS)
    names = tuple(f"N {count_text(n)}<br>C {flops_text(c)}" for n, c in zip(one.params, one.flops, strict=True))
    found = _optima(fit, approach, "envelope", level, flops, one.flops, (one.params, one.tokens), marker, names)
    return [figure, *found]


def isoflop(fit: ConventionFit, approach: Isoflop, level: float) -> list[Figure]:
    """Approach 2: rows and parabolas per budget, refused ones hollow; then the minima against C."""
    sizes = views.padded(fit.rows.params, 1.25)
    figure = _figure(_params_axis(fit.conventions, *sizes), {"title": _loss(fit.conventions)})
    budgets = np.array([parabola.budget for parabola in approach.fit.parabolas])
    for parabola in approach.fit.parabolas:
        colour, refused = _shade(parabola.budget, budgets), parabola.refused
        symbol = "circle-open" if refused else "circle"
        _rows(figure, fit, parabola.rows, fit.rows.params, fit.rows.loss, colour, symbol, refused or "")
        if refused is None:
            _line(figure, *views.parabola_line(fit, parabola), None, {"color": colour, "width": 1.5})
    flops, params, tokens, lowest = views.minima(approach)
    marker: dict[str, Any] = {"color": "black", "size": 8, "symbol": "diamond", "line": {"color": "white", "width": 1}}
    names = tuple(
        f"C {flops_text(c)}<br>N* {count_text(n)}<br>D* {count_text(d)}<br>L* {loss:.4f}"
        for c, n, d, loss in zip(flops, params, tokens, lowest, strict=True)
    )
    _scatter(figure, x=params, y=lowest, mode="markers", marker=marker, text=names, hoverinfo="text")
    _colour_bar(figure, budgets, "C", flops_text)
    span = np.geomspace(flops.min() / 1.3, flops.max() * 1.3, views.FRONTIER_POINTS)
    return [figure, *_optima(fit, approach, "isoflop", level, span, flops, (params, tokens), marker, names)]


def parametric(fit: ConventionFit, approach: Parametric, level: float) -> list[Figure]:
    """Approach 3: the fitted surface with rows and frontier, slices along budgets, residuals."""
    return [_contours(fit, approach, level), _slices(fit, approach), _residuals(fit, approach)]


def backtest(test: Backtest, conventions: Conventions) -> Figure:
    """Held-out losses against what was foretold, with prediction intervals; on the diagonal they agree."""
    figure = _figure(
        {"title": "L measured, " + html.escape(conventions.loss)},
        {"title": "L predicted, " + html.escape(conventions.loss)},
    )
    ends = [float(test.measured.min()), float(test.measured.max())]
    _line(figure, np.array(ends), np.array(ends), None, {"color": "#888", "width": 1})
    bars = {"type": "data", "array": test.high - test.predicted, "arrayminus": test.predicted - test.low, "width": 2}
    marker = {"color": views.COLOURS["parametric"], "size": 7}
    hover = "measured %{x:.4f}<br>predicted %{y:.4f}<extra></extra>"
    _scatter(
        figure, x=test.measured, y=test.predicted, error_y=bars, mode="markers", marker=marker, hovertemplate=hover
    )
    return figure


def _contours(fit: ConventionFit, approach: Parametric, level: float) -> Figure:
    at, rows = views.surface(fit, approach), fit.rows
    params_axis = _params_axis(fit.conventions, at.params[0], at.params[-1])
    figure = _figure(_flops_axis(fit.conventions, at.flops[0], at.flops[-1]), params_axis)
    levels = np.log10(at.levels)
    contours = {"start": levels[0], "end": levels[-1], "size": levels[1] - levels[0], "coloring": "lines"}
    figure.add_contour(
        x=_short(at.flops),
        y=_short(at.params),
        z=_short(np.log10(at.loss)),
        zmin=levels[0],
        zmax=levels[-1],
        contours=contours,
        line={"width": 1.2},
        colorscale=_scale(),
        showscale=False,
        hoverinfo="skip",
    )
    _band(figure, views.frontier(fit, approach, at.flops, level)[0], "parametric", "N*(C)")
    colours = {"color": _short(np.log10(rows.loss)), "cmin": levels[0], "cmax": levels[-1], "colorscale": _scale()}
    _rows(figure, fit, np.arange(len(rows)), rows.flops, rows.params, colours)
    _colour_bar(figure, at.levels, "L", "{:.3g}".format)
    return figure


def _slices(fit: ConventionFit, approach: Parametric) -> Figure:
    drawn = views.slices(fit, approach)
    sizes = views.padded(np.concatenate([at.params for at in drawn]), 1.1)
    figure = _figure(_params_axis(fit.conventions, *sizes), {"title": _loss(fit.conventions)})
    budgets = np.array([at.budget for at in drawn])
    for at in drawn:
        colour = _shade(at.budget, budgets)
        _line(figure, at.params, at.loss, None, {"color": colour, "width": 1.5})
        _rows(figure, fit, at.rows, fit.rows.params, fit.rows.loss, colour)
    _colour_bar(figure, budgets, "C", flops_text)
    return figure


def _residuals(fit: ConventionFit, approach: Parametric) -> Figure:
    ends = views.padded(fit.rows.flops, 1.3)
    figure = _figure(_flops_axis(fit.conventions, *ends), {"title": "L, measured / fitted − 1 (%)", "zeroline": True})
    index = np.arange(len(fit.rows))
    _rows(figure, fit, index, fit.rows.flops, views.residual_percent(approach), views.COLOURS["parametric"])
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
    names: tuple[str, ...],
) -> list[Figure]:
    """N* and D* against C: the power law over ``span`` with its band, and what was ``found`` at ``flops``."""
    figures = []
    for which in (0, 1):
        band = views.frontier(fit, approach, span, level)[which]
        ends = views.padded(np.concatenate([*views.extent(band), found[which]]), 1.1)
        figure = _figure(
            _flops_axis(fit.conventions, *views.padded(span, 1.1)), _optimum_axis(fit.conventions, which, *ends)
        )
        _band(figure, band, name, views.TITLES[name])
        x, y = _short(flops), _short(found[which])
        _scatter(figure, x=x, y=y, mode="markers", marker=marker, text=names, hoverinfo="text")
        figures.append(figure)
    return figures


def _band(figure: Figure, at: views.Frontier, name: str, label: str) -> None:
    colour = views.COLOURS[name]
    if at.low is not None and at.high is not None:
        around = np.concatenate([at.low, at.high[::-1]])
        along = np.concatenate([at.flops, at.flops[::-1]])
        fill = {"fill": "toself", "fillcolor": colour, "opacity": 0.18, "legendgroup": name, "hoverinfo": "skip"}
        _scatter(figure, x=along, y=around, mode="lines", line={"width": 0}, showlegend=False, **fill)
    _line(figure, at.flops, at.value, label, {"color": colour, "dash": DASHES[views.DASHES[name]]}, name)


def _line(
    figure: Figure, x: Floats, y: Floats, label: str | None, line: dict[str, Any], group: str | None = None
) -> None:
    """A line; named ones tell C and the count where they are pointed at."""
    texts = [f"{label}<br>C {flops_text(c)}<br>{count_text(n)}" for c, n in zip(x, y, strict=True)] if label else None
    hover = "text" if label else "skip"
    _scatter(
        figure,
        x=x,
        y=y,
        mode="lines",
        line=line,
        name=label,
        legendgroup=group,
        text=texts,
        hoverinfo=hover,
        showlegend=bool(label),
    )


def _rows(
    figure: Figure,
    fit: ConventionFit,
    index: Ints,
    x: Floats,
    y: Floats,
    colour: str | dict[str, Any],
    symbol: str = "circle",
    remark: str = "",
) -> None:
    """The rows ``index``, at ``x`` and ``y`` of all rows."""
    rows = fit.rows
    texts = [
        f"{html.escape(rows.point_id[i])}<br>N {count_text(rows.params[i])}, D {count_text(rows.tokens[i])}"
        f"<br>C {flops_text(rows.flops[i])}<br>L {rows.loss[i]:.4f}" + (f"<br>{html.escape(remark)}" if remark else "")
        for i in (index if len(rows) <= MOST_HOVERS else ())
    ]
    few = len(rows) <= MOST_HOVERS
    edge = {"color": colour, "width": 1.2} if remark else {"color": "white", "width": 0.5 if few else 0}
    marker = {"size": 7 if few else 3, "symbol": symbol, "line": edge}
    marker |= colour if isinstance(colour, dict) else {"color": colour}
    _scatter(
        figure,
        x=_short(x[index]),
        y=_short(y[index]),
        mode="markers",
        marker=marker,
        text=texts or None,
        hoverinfo="text",
    )


def _figure(x: dict[str, Any], y: dict[str, Any], *, legend: bool = False) -> Figure:
    from plotly.graph_objects import Figure

    axis: dict[str, Any] = {"gridcolor": "#e8e8e8", "linecolor": "#888", "showline": True, "ticks": "outside"}
    axis |= {"automargin": True, "zeroline": False, "zerolinecolor": "#444", "tickcolor": "#888", "ticklen": 4}
    return Figure(
        layout={
            "template": "none",
            "xaxis": axis | x,
            "yaxis": axis | y,
            "showlegend": legend,
            "legend": {"x": 0.01, "y": 0.99, "font": {"size": 11}, "bgcolor": "rgba(255,255,255,0.7)"},
            "margin": {"l": 58, "r": 12, "t": 32, "b": 48},
            "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222"},
            "hoverlabel": {"align": "left", "namelength": -1},
            "hovermode": "closest",
        }
    )


def _colour_bar(figure: Figure, values: Floats, symbol: str, text: Callable[[float], str]) -> None:
    """What the colours between the least and the largest of ``values`` stand for, at the right."""
    low, high = float(values.min()), float(values.max())
    apart = len(values) <= 8 and np.diff(np.log(np.unique(values))).min(initial=np.inf) > 0.08 * np.log(high / low)
    ticks = np.unique(values).tolist() if apart else views.log_ticks(low, high)
    bar = {"title": {"text": symbol}, "thickness": 10, "len": 1, "outlinewidth": 0, "tickfont": {"size": 10}}
    bar |= {"tickvals": np.log10(ticks).tolist(), "ticktext": [text(tick) for tick in ticks]}
    scale = {"colorscale": _scale(), "cmin": np.log10(low), "cmax": np.log10(high), "color": [np.log10(low)]}
    _scatter(figure, x=[None], y=[None], mode="markers", marker=scale | {"showscale": True, "colorbar": bar})


def _scatter(figure: Figure, **trace: Any) -> None:
    figure.add_scatter(**trace)


def _scale() -> list[str]:
    return _sample(np.linspace(0, BRIGHTEST, SHADES))


def _shade(value: float, among: Floats) -> str:
    """The colour of ``value`` on a logarithmic scale from the least to the largest of ``among``."""
    span = float(np.log(among.max() / among.min())) or 1.0
    return _sample(np.array([BRIGHTEST * np.log(value / among.min()) / span]).clip(0, 1))[0]


def _sample(shares: Floats) -> list[str]:
    from plotly.colors import sample_colorscale  # type: ignore[attr-defined]  # plotly-stubs lacks it

    return [str(colour) for colour in sample_colorscale(views.COLOUR_MAP, shares.tolist())]


def _short(values: Floats) -> Any:
    """Half the bytes; seven digits are more than a screen has, and 3e38 FLOPs more than anyone has."""
    return values.astype(np.float32)


def _log_axis(label: str, low: float, high: float, text: Callable[[float], str], most: int = 6) -> dict[str, Any]:
    ticks = views.log_ticks(low, high, most)
    return {
        "type": "log",
        "title": html.escape(label),
        "range": [float(np.log10(low)), float(np.log10(high))],
        "tickvals": ticks,
        "ticktext": [text(tick) for tick in ticks],
        "tickmode": "array",
        "exponentformat": "B",  # for the ticks that plotly chooses itself once the reader has zoomed in
    }


def _flops_axis(conventions: Conventions, low: float, high: float) -> dict[str, Any]:
    return _log_axis(views.flops_label(conventions), low, high, flops_text, 5) | {"exponentformat": "e"}


def _params_axis(conventions: Conventions, low: float, high: float) -> dict[str, Any]:
    return _log_axis(views.params_label(conventions), low, high, count_text, 5)


def _optimum_axis(conventions: Conventions, which: int, low: float, high: float) -> dict[str, Any]:
    label = views.tokens_label("D*") if which else views.params_label(conventions, "N*")
    return _log_axis(label, low, high, count_text)


def _loss(conventions: Conventions) -> str:
    return html.escape(views.loss_label(conventions))

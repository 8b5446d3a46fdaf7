"""Plotly's part of the report's charts: axes, lines, bands, markers; every text from outside is escaped here.

plotly reads some HTML in labels, so whatever a source may hold goes through :func:`html.escape`. plotly is imported
when a chart is drawn.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.fitting.values import Floats, Ints
from analysis.report import style
from analysis.report.views import Frontier
from analysis.result import ConventionFit, Conventions
from analysis.text import count_text, flops_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHADES = 12
MOST_HOVERS = 1000
"""Rows that are named when pointed at; with more of them their names would outweigh the charts."""
DASHES = {"solid": "solid", "dashed": "dash", "dashdot": "dashdot"}


@dataclass(frozen=True, eq=False)
class Panel:
    """A chart under its plain-text title."""

    title: str
    figure: Figure


@dataclass(frozen=True)
class Key:
    """What a colour and a dash stand for, in plain text."""

    label: str
    colour: str
    dash: str = "solid"


def blank(x: dict[str, Any], y: dict[str, Any]) -> Figure:
    """A figure with two axes and nothing in it; above them is room for plotly's buttons."""
    from plotly.graph_objects import Figure

    axis: dict[str, Any] = {"gridcolor": "#e8e8e8", "linecolor": "#888", "showline": True, "ticks": "outside"}
    axis |= {"automargin": True, "zeroline": False, "zerolinecolor": "#444", "tickcolor": "#888", "ticklen": 4}
    return Figure(
        layout={
            "template": "none",
            "xaxis": axis | x,
            "yaxis": axis | y,
            "showlegend": False,
            "margin": {"l": 64, "r": 12, "t": 28, "b": 48},
            "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222"},
            "hoverlabel": {"align": "left", "namelength": -1},
            "hovermode": "closest",
        }
    )


def band(figure: Figure, at: Frontier, name: str, *, measured: bool = False) -> None:
    """An approach's line in its band; with ``measured`` also, paler, the band of one more measurement."""
    colour = style.COLOURS[name]
    for low, high, opacity in ((at.first, at.last, 0.09), (at.low, at.high, 0.2)):
        known = np.isfinite(low) & np.isfinite(high)
        if not known.any() or (low is at.first and not measured):
            continue
        around = np.concatenate([low[known], high[known][::-1]])
        along = np.concatenate([at.flops[known], at.flops[known][::-1]])
        fill = {"fill": "toself", "fillcolor": colour, "opacity": opacity, "hoverinfo": "skip"}
        _scatter(figure, x=along, y=around, mode="lines", line={"width": 0}, **fill)
    dash = DASHES[style.DASHES[name]]
    line(figure, at.flops, at.value, {"color": colour, "dash": dash}, style.TITLES[name])


def line(figure: Figure, x: Floats, y: Floats, how: dict[str, Any], label: str | None = None) -> None:
    """A line; named ones, whose label is plain text, tell C and the count where they are pointed at."""
    label = html.escape(label) if label else None
    texts = [f"{label}<br>C {flops_text(c)}<br>{count_text(n)}" for c, n in zip(x, y, strict=True)] if label else None
    _scatter(
        figure,
        x=x,
        y=y,
        mode="lines",
        line=how,
        name=label,
        text=texts,
        hoverinfo="text" if label else "skip",
    )


def dots(figure: Figure, x: Floats, y: Floats, marker: dict[str, Any], texts: Sequence[str] | None, **how: Any) -> None:
    """Markers; ``texts`` are plain, one for each, lines parted by newlines."""
    shown = None if texts is None else [html.escape(text).replace("\n", "<br>") for text in texts]
    how = {"mode": "markers", "hoverinfo": "skip" if texts is None else "text"} | how
    _scatter(figure, x=short(x), y=short(y), marker=marker, hovertext=shown, **how)


def names(figure: Figure, x: Floats, y: Floats, texts: Sequence[str], where: str) -> None:
    """Plain texts beside dots."""
    shown = [html.escape(text) for text in texts]
    how: dict[str, Any] = {"mode": "text", "textfont": {"size": 9.5, "color": "#444"}, "hoverinfo": "skip"}
    _scatter(figure, x=short(x), y=short(y), text=shown, textposition=where, **how)


def curve(figure: Figure, flops: Floats, loss: Floats, how: dict[str, Any], text: str) -> None:
    """A loss curve, named by a plain text where it is pointed at."""
    hover = html.escape(text).replace("\n", "<br>") + "<br>C %{x:.3e}<br>L %{y:.4f}<extra></extra>"
    _scatter(figure, x=short(flops), y=short(loss), mode="lines", line=how, hovertemplate=hover)


def points(
    figure: Figure,
    fit: ConventionFit,
    index: Ints,
    x: Floats,
    y: Floats,
    colour: str | dict[str, Any],
    symbol: str = "circle",
    remark: str = "",
) -> None:
    """The rows ``index`` of a fit, at ``x`` and ``y`` of all rows."""
    rows, few = fit.rows, len(fit.rows) <= MOST_HOVERS
    texts = [
        f"{rows.point_id[i]}\nN {count_text(rows.params[i])}, D {count_text(rows.tokens[i])}"
        f"\nC {flops_text(rows.flops[i])}\nL {rows.loss[i]:.4f}" + (f"\n{remark}" if remark else "")
        for i in index
    ]
    edge = {"color": colour, "width": 1.2} if remark else {"color": "white", "width": 0.5 if few else 0}
    marker = {"size": 7 if few else 3, "symbol": symbol, "line": edge}
    marker |= colour if isinstance(colour, dict) else {"color": colour}
    dots(figure, x[index], y[index], marker, texts if few else None)


def colour_bar(figure: Figure, values: Floats, symbol: str, text: Callable[[float], str]) -> None:
    """What the colours between the least and the largest of ``values`` stand for, at the right."""
    low, high = float(values.min()), float(values.max())
    apart = len(values) <= 8 and np.diff(np.log(np.unique(values))).min(initial=np.inf) > 0.08 * np.log(high / low)
    ticks = np.unique(values).tolist() if apart else style.log_ticks(low, high)
    bar = {"title": {"text": symbol}, "thickness": 10, "len": 1, "outlinewidth": 0, "tickfont": {"size": 10}}
    bar |= {"tickvals": np.log10(ticks).tolist(), "ticktext": [text(tick) for tick in ticks]}
    scale = {"colorscale": colours(), "cmin": np.log10(low), "cmax": np.log10(high), "color": [np.log10(low)]}
    _scatter(figure, x=[None], y=[None], mode="markers", marker=scale | {"showscale": True, "colorbar": bar})


def colours() -> list[str]:
    """The colour scale."""
    return _sample(np.linspace(0, style.BRIGHTEST, SHADES))


def shade(value: float, among: Floats) -> str:
    """The colour of ``value`` on a logarithmic scale from the least to the largest of ``among``."""
    span = float(np.log(among.max() / among.min())) or 1.0
    return _sample(np.array([style.BRIGHTEST * np.log(value / among.min()) / span]).clip(0, 1))[0]


def short(values: Floats) -> Any:
    """Half the bytes; seven digits are more than a screen has, and 3e38 FLOPs more than anyone has."""
    return np.asarray(values).astype(np.float32)


def log_axis(label: str, low: float, high: float, text: Callable[[float], str], most: int = 6) -> dict[str, Any]:
    """A logarithmic axis with round, written-out ticks."""
    ticks = style.log_ticks(low, high, most)
    return {
        "type": "log",
        "title": html.escape(label),
        "range": [float(np.log10(low)), float(np.log10(high))],
        "tickvals": ticks,
        "ticktext": [text(tick) for tick in ticks],
        "tickmode": "array",
        "exponentformat": "B",  # for the ticks that plotly chooses itself once the reader has zoomed in
    }


def flops_axis(conventions: Conventions, low: float, high: float) -> dict[str, Any]:
    """The axis of C."""
    return log_axis(style.flops_label(conventions), low, high, flops_text, 5) | {"exponentformat": "e"}


def params_axis(conventions: Conventions, low: float, high: float) -> dict[str, Any]:
    """The axis of N."""
    return log_axis(style.params_label(conventions), low, high, count_text, 5)


def optimum_axis(conventions: Conventions, which: int, low: float, high: float) -> dict[str, Any]:
    """The axis of N* (0), D* (1) or L* (2)."""
    if which == 2:
        return log_axis(style.loss_label(conventions, "L*"), low, high, "{:.3g}".format)
    label = style.tokens_label("D*") if which else style.params_label(conventions, "N*")
    return log_axis(label, low, high, count_text)


def loss_axis(conventions: Conventions) -> dict[str, Any]:
    """A linear axis of the loss."""
    return {"title": html.escape(style.loss_label(conventions))}


def _scatter(figure: Figure, **trace: Any) -> None:
    figure.add_scatter(**trace)


def _sample(shares: Floats) -> list[str]:
    from plotly.colors import sample_colorscale  # type: ignore[attr-defined]  # plotly-stubs lacks it

    return [str(colour) for colour in sample_colorscale(style.COLOUR_MAP, shares.tolist())]

"""Matplotlib's part of the figures for papers: style, panels, ticks, bands, colour scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.report import labels, style, views
from analysis.result import ConventionFit
from analysis.text import count_text, flops_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

WIDTH = 7.2
"""Inches: a page of two columns."""
STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.2,
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "svg.hashsalt": "isoflop",  # the same fit gives the same bytes
    "pdf.fonttype": 42,  # letters stay letters, as journals ask
    "savefig.dpi": 300,
}
PLACES = dict(
    zip(
        labels.POSITIONS,
        (
            ((3, 0), "left", "center"),
            ((-3, 0), "right", "center"),
            ((0, 2), "center", "bottom"),
            ((0, -2), "center", "top"),
        ),
        strict=True,
    )
)
MANY = 600
"""Points in a panel beyond which their white edges would hide them."""


def panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def band(axes: Axes, at: views.Frontier, name: str, label: str = "") -> None:
    """An approach's line in its band."""
    colour = style.COLOURS[name]
    axes.plot(at.flops, at.value, color=colour, ls=style.DASHES[name], label=label)
    axes.fill_between(at.flops, at.low, at.high, color=colour, alpha=0.2, linewidth=0)


def law_axes(axes: Axes, fit: ConventionFit, which: int) -> None:
    """Logarithmic axes of N* (0) or D* (1) against C, ticked as their limits are now."""
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel(style.flops_label(fit.conventions))
    axes.set_ylabel(style.tokens_label("D*") if which else style.params_label(fit.conventions, "N*"))
    ticks(axes.xaxis, flops_text, most=5)
    ticks(axes.yaxis, count_text)


def mark_largest(axes: Axes, fit: ConventionFit) -> None:
    """Where the rows end and extrapolation begins."""
    largest = float(fit.rows.flops.max())
    axes.axvline(largest, ymax=0.6, color="#888888", lw=0.6)
    at: Any = {"xycoords": ("data", "axes fraction"), "rotation": 90, "ha": "right", "va": "bottom"}
    axes.annotate("largest C fitted", (largest, 0.02), fontsize=6, color="#555555", **at)


def name(axes: Axes, text: str, at: tuple[float, float], place: str) -> None:
    """A text beside a dot, at one of ``labels.POSITIONS``."""
    offset, across, up = PLACES[place]
    where: Any = {"textcoords": "offset points", "ha": across, "va": up}
    axes.annotate(text, at, offset, fontsize=5.5, color="#444444", **where)


def point(count: int, size: float = 13) -> dict[str, Any]:
    """How a row is drawn in a panel of ``count`` of them."""
    if count > MANY:
        return {"s": 2, "linewidths": 0, "zorder": 1.9}  # below the lines, which it would bury
    return {"s": size, "linewidths": 0.4, "edgecolors": "white", "zorder": 3}


def headroom(axes: Axes, lines: int) -> None:
    """Room for a legend of ``lines`` above what is drawn, on a logarithmic axis."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** (0.055 * lines))
    ticks(axes.yaxis, count_text)


def ticks(axis: Axis, text: Callable[[float], str], most: int = 6) -> None:
    """Round, written-out numbers on a logarithmic axis, as its limits are now."""
    from matplotlib.ticker import NullLocator

    low, high = sorted(axis.get_view_interval())
    found = style.log_ticks(low, high, most)
    axis.set_ticks(found, [text(tick) for tick in found])
    axis.set_minor_locator(NullLocator())


def budget_colours(budgets: Sequence[float]) -> tuple[ListedColormap, ScalarMappable]:
    """A colour per budget, and the scale that explains them."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    shades = colormaps[style.COLOUR_MAP](np.linspace(0, style.BRIGHTEST, len(budgets)))
    colours = ListedColormap(list(shades))
    return colours, ScalarMappable(BoundaryNorm(np.arange(len(budgets) + 1) - 0.5, len(budgets)), cmap=colours)


def bar(figure: Figure, axes: Axes, scale: ScalarMappable, symbol: str, text: Callable[[float], str]) -> None:
    """A logarithmic colour scale at the right of ``axes``."""
    drawn = figure.colorbar(scale, ax=axes, pad=0.01, aspect=30)
    drawn.ax.set_title(symbol, loc="center")
    ticks(drawn.ax.yaxis, text)


def budget_bar(figure: Figure, axes: Axes, scale: ScalarMappable, budgets: Sequence[float]) -> None:
    """The colours of ``budgets`` at the right of ``axes``; with many, every second or third is named."""
    shown = range(0, len(budgets), -(-len(budgets) // 14))
    drawn = figure.colorbar(scale, ax=axes, pad=0.01, aspect=30, ticks=list(shown))
    drawn.ax.set_yticklabels([flops_text(budgets[i]) for i in shown])
    drawn.ax.tick_params(length=0)
    drawn.ax.set_title("C", loc="center")

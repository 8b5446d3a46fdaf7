"""Figures for papers, after Hoffmann et al. 2022, figures 1 to 4: PNG and SVG, drawn by matplotlib without a display.

matplotlib is imported when a figure is drawn, so that importing this module stays light.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import views
from analysis.fits import Floats
from analysis.laws import Law
from analysis.result import ConventionFit, Envelope, FitResult, Isoflop, Parametric
from analysis.text import count_text, estimate_text, flops_text
from trainer.files import disk_faults, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

FIGURES = ("frontier", "envelope", "isoflop", "parametric")
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
    "savefig.dpi": 300,
}
MANY = 600
"""Points in a panel beyond which their white edges would hide them."""
MOST_FOOTNOTES = 4


def write_figures(fit: FitResult, curves: pd.DataFrame | None, out: Path, laws: Sequence[Law] = ()) -> list[Path]:
    """Write ``frontier``, ``envelope``, ``isoflop`` and ``parametric`` as PNG and SVG to ``out/figures``.

    An approach that was refused has no figure, and with all three refused there is none; what an earlier fit left
    under such a name is removed.

    Parameters
    ----------
    curves
        The curves table of the source; Approach 1 shows the runs' curves where it is given.
    laws
        Published laws to compare with, each in its own conventions.

    Returns
    -------
    list[Path]
        The files written.

    Raises
    ------
    MachineFault
        If the disk is full or read-only.
    """
    import matplotlib as mpl

    drawings = _drawings(fit, curves, laws)
    written = []
    with mpl.rc_context(STYLE):
        for name in FIGURES:
            figure = drawings[name]() if name in drawings else None
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                path = out / "figures" / f"{name}.{kind}"
                if figure is None:
                    with disk_faults(path):
                        path.unlink(missing_ok=True)
                    continue
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, metadata=metadata)
                write_whole(path, buffer.getvalue())
                written.append(path)
    return written


def _drawings(fit: FitResult, curves: pd.DataFrame | None, laws: Sequence[Law]) -> dict[str, Callable[[], Figure]]:
    """How to draw each figure that this fit has."""
    primary, level = fit.primary, fit.interval.level
    one, two, three = primary.envelope, primary.isoflop, primary.parametric
    drawings: dict[str, Callable[[], Figure]] = {}
    if views.fitted(primary):
        drawings["frontier"] = lambda: _frontier(primary, level, laws)
    if isinstance(one, Envelope):
        drawings["envelope"] = lambda: _envelope(primary, one, curves, level)
    if isinstance(two, Isoflop):
        drawings["isoflop"] = lambda: _isoflop(primary, two, level)
    if isinstance(three, Parametric):
        drawings["parametric"] = lambda: _parametric(primary, three, level)
    return drawings


def _frontier(fit: ConventionFit, level: float, laws: Sequence[Law]) -> Figure:
    """N* and D* against C: all approaches, and published laws."""
    figure, panels = _panels(2, 3.1)
    flops = views.frontier_flops(fit)
    for which, axes in enumerate(panels):
        for name, approach in views.fitted(fit).items():
            exponent = (approach.a, approach.b)[which]
            label = f"{views.TITLES[name]}: {'ab'[which]} = {estimate_text(exponent)}"
            _band(axes, views.frontier(fit, approach, flops, level)[which], name, label)
        for i, law in enumerate(laws):
            label = f"{views.law_label(law, fit.conventions)}: {'ab'[which]} = {(law.a, law.b)[which]:.3f}"
            colour = views.LAW_COLOURS[i % len(views.LAW_COLOURS)]
            axes.plot(flops, views.law_frontier(law, flops)[which], color=colour, lw=0.9, ls=(0, (1, 1)), label=label)
        _mark_largest(axes, fit)
        _law_axes(axes, fit, which)
        axes.legend(
            loc="upper left", title=f"bands: {views.interval_text(level)}", title_fontsize=6.5, alignment="left"
        )
        _headroom(axes, 1 + len(views.fitted(fit)) + len(laws))
    return figure


def _envelope(fit: ConventionFit, approach: Envelope, curves: pd.DataFrame | None, level: float) -> Figure:
    """Approach 1: the curves and their envelope, then who holds it, against C."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LogNorm

    figure, panels = _panels(3, 2.5)
    one, drawn = approach.fit, views.training_curves(fit, curves)
    sizes = np.array([curve.params for curve in drawn] or one.params)
    colours = ScalarMappable(LogNorm(*views.padded(sizes, 1.0001)), cmap=views.COLOUR_MAP)
    lines = [np.column_stack([curve.flops, curve.loss]) for curve in drawn]
    colour_of_line = [colours.to_rgba(np.array(curve.params)) for curve in drawn]
    panels[0].add_collection(LineCollection(lines, colors=colour_of_line, linewidths=0.6 if len(lines) <= 60 else 0.3))
    panels[0].plot(one.flops, one.loss, ".", color="black", ms=1.5)
    panels[0].set(xscale="log", yscale="log")
    x, y = views.curve_window(drawn, approach)
    panels[0].set_xlim(*x)
    panels[0].set_ylim(*y)
    panels[0].set_title("black: lowest loss at each C")
    panels[0].set_xlabel(views.flops_label(fit.conventions))
    panels[0].set_ylabel(views.loss_label(fit.conventions))
    _ticks(panels[0].xaxis, flops_text, most=5)
    _ticks(panels[0].yaxis, "{:g}".format)
    _bar(figure, panels[0], colours, "N", count_text)
    flops = np.geomspace(one.flops.min() / 1.3, one.flops.max() * 1.3, views.FRONTIER_POINTS)
    _two_laws(panels[1:], fit, approach, "envelope", level, flops, one.flops, (one.params, one.tokens), "black", 3)
    return figure


def _isoflop(fit: ConventionFit, approach: Isoflop, level: float) -> Figure:
    """Approach 2: parabolas and their minima, then these against C."""
    parabolas, rows = approach.fit.parabolas, fit.rows
    refused = views.refusals(parabolas)
    figure, panels = _panels(3, 2.5 + 0.13 * len(_footnote(refused).splitlines()))
    colours, scale = _budget_colours([parabola.budget for parabola in parabolas])
    for i, parabola in enumerate(parabolas):
        colour, n, loss = colours(i), rows.params[parabola.rows], rows.loss[parabola.rows]
        if parabola.refused is not None:
            panels[0].scatter(n, loss, s=11, facecolors="none", edgecolors=[colour], linewidths=0.7)
            continue
        panels[0].scatter(n, loss, color=[colour], **_point(len(rows)))
        panels[0].plot(*views.parabola_line(fit, parabola), color=colour, lw=0.9)
    panels[0].set_xscale("log")
    panels[0].set_xlabel(views.params_label(fit.conventions))
    panels[0].set_ylabel(views.loss_label(fit.conventions))
    _ticks(panels[0].xaxis, count_text, most=5)
    panels[0].set_title("diamonds: minima")
    _budget_bar(figure, panels[0], scale, [parabola.budget for parabola in parabolas])
    flops, *found, lowest = views.minima(approach)
    panels[0].plot(found[0], lowest, "D", color="black", mec="white", mew=0.5, ms=3.8, zorder=4)
    span = np.geomspace(flops.min() / 1.3, flops.max() * 1.3, views.FRONTIER_POINTS)
    shades = [colours(i) for i, parabola in enumerate(parabolas) if parabola.refused is None]
    _two_laws(panels[1:], fit, approach, "isoflop", level, span, flops, (found[0], found[1]), shades, 16)
    if refused:
        figure.supxlabel(_footnote(refused), fontsize=6.5, x=0.01, ha="left", color="#444444")
    return figure


def _parametric(fit: ConventionFit, approach: Parametric, level: float) -> Figure:
    """Approach 3: the fitted surface with the rows and the frontier, slices along budgets, residuals."""
    figure, panels = _panels(3, 2.6)
    _contours(figure, panels[0], fit, approach, level)
    _slices(figure, panels[1], fit, approach)
    panels[2].axhline(0, color="black", lw=0.6)
    panels[2].scatter(
        fit.rows.flops, views.residual_percent(approach), color=views.COLOURS["parametric"], **_point(len(fit.rows))
    )
    panels[2].set_xscale("log")
    panels[2].set_xlabel(views.flops_label(fit.conventions))
    panels[2].set_ylabel("loss, measured / fitted − 1 (%)")
    panels[2].set_title("residuals")
    _ticks(panels[2].xaxis, flops_text, most=5)
    return figure


def _contours(figure: Figure, axes: Axes, fit: ConventionFit, approach: Parametric, level: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    at, rows = views.surface(fit, approach), fit.rows
    norm = LogNorm(at.levels[0], at.levels[-1])
    lines = axes.contour(at.flops, at.params, at.loss, levels=at.levels, cmap=views.COLOUR_MAP, norm=norm)
    lines.set_linewidth(0.7)
    axes.scatter(rows.flops, rows.params, c=rows.loss, cmap=views.COLOUR_MAP, norm=norm, **_point(len(rows), 8))
    frontier = views.frontier(fit, approach, at.flops, level)[0]
    _band(axes, frontier, "parametric")
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(at.flops[0], at.flops[-1])
    axes.set_ylim(at.params[0], at.params[-1])
    axes.set_xlabel(views.flops_label(fit.conventions))
    axes.set_ylabel(views.params_label(fit.conventions))
    axes.grid(visible=False)
    _ticks(axes.xaxis, flops_text, most=5)
    _ticks(axes.yaxis, count_text)
    axes.set_title("fitted loss; line: N*(C)")
    _bar(figure, axes, ScalarMappable(norm, cmap=views.COLOUR_MAP), "L", "{:g}".format)


def _slices(figure: Figure, axes: Axes, fit: ConventionFit, approach: Parametric) -> None:
    drawn = views.slices(fit, approach)
    colours, scale = _budget_colours([at.budget for at in drawn])
    for i, at in enumerate(drawn):
        axes.plot(at.params, at.loss, color=colours(i), lw=0.9)
        axes.scatter(fit.rows.params[at.rows], fit.rows.loss[at.rows], color=[colours(i)], **_point(len(fit.rows)))
    axes.set_xscale("log")
    axes.set_xlabel(views.params_label(fit.conventions))
    axes.set_ylabel(views.loss_label(fit.conventions))
    _ticks(axes.xaxis, count_text, most=5)
    axes.set_title("fitted loss along budgets")
    _budget_bar(figure, axes, scale, [at.budget for at in drawn])


def _two_laws(
    panels: Sequence[Axes],
    fit: ConventionFit,
    approach: Envelope | Isoflop,
    name: str,
    level: float,
    span: Floats,
    flops: Floats,
    found: tuple[Floats, Floats],
    colour: Any,
    size: float,
) -> None:
    """N* and D* against C: what was ``found`` at ``flops``, and the power law over ``span`` with its band."""
    for which, axes in enumerate(panels):
        axes.scatter(flops, found[which], c=colour, s=size, linewidths=0, zorder=3)
        _band(axes, views.frontier(fit, approach, span, level)[which], name)
        _law_axes(axes, fit, which)
        axes.set_title(f"{'ab'[which]} = {estimate_text((approach.a, approach.b)[which])}")


def _band(axes: Axes, frontier: views.Frontier, name: str, label: str = "") -> None:
    colour = views.COLOURS[name]
    axes.plot(frontier.flops, frontier.value, color=colour, ls=views.DASHES[name], label=label)
    if frontier.low is not None and frontier.high is not None:
        axes.fill_between(frontier.flops, frontier.low, frontier.high, color=colour, alpha=0.18, linewidth=0)


def _law_axes(axes: Axes, fit: ConventionFit, which: int) -> None:
    """Logarithmic axes of N* (0) or D* (1) against C."""
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel(views.flops_label(fit.conventions))
    axes.set_ylabel(views.tokens_label("D*") if which else views.params_label(fit.conventions, "N*"))
    _ticks(axes.xaxis, flops_text, most=5)
    _ticks(axes.yaxis, count_text)


def _mark_largest(axes: Axes, fit: ConventionFit) -> None:
    """Where the rows end and extrapolation begins."""
    largest = float(fit.rows.flops.max())
    axes.axvline(largest, ymax=0.6, color="#888888", lw=0.6)
    at: Any = {"xycoords": ("data", "axes fraction"), "rotation": 90, "ha": "right", "va": "bottom"}
    axes.annotate("largest C fitted", (largest, 0.02), fontsize=6, color="#555555", **at)


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _point(count: int, size: float = 13) -> dict[str, Any]:
    """How a row is drawn in a panel of ``count`` of them."""
    if count > MANY:
        return {"s": 2, "linewidths": 0, "zorder": 1.9}  # below the lines, which it would bury
    return {"s": size, "linewidths": 0.4, "edgecolors": "white", "zorder": 3}


def _headroom(axes: Axes, lines: int) -> None:
    """Room for a legend of ``lines`` above what is drawn, on a logarithmic axis."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** (0.055 * lines))
    _ticks(axes.yaxis, count_text)


def _ticks(axis: Axis, text: Callable[[float], str], most: int = 6) -> None:
    """Round, written-out numbers on a logarithmic axis, as its limits are now."""
    from matplotlib.ticker import NullLocator

    low, high = sorted(axis.get_view_interval())
    ticks = views.log_ticks(low, high, most)
    axis.set_ticks(ticks, [text(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())


def _budget_colours(budgets: Sequence[float]) -> tuple[ListedColormap, ScalarMappable]:
    """A colour per budget, and the scale that explains them."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    shades = colormaps[views.COLOUR_MAP](np.linspace(0, 0.92, len(budgets)))
    colours = ListedColormap(list(shades))
    return colours, ScalarMappable(BoundaryNorm(np.arange(len(budgets) + 1) - 0.5, len(budgets)), cmap=colours)


def _bar(figure: Figure, axes: Axes, scale: ScalarMappable, symbol: str, text: Callable[[float], str]) -> None:
    """A logarithmic colour scale at the right of ``axes``."""
    bar = figure.colorbar(scale, ax=axes, pad=0.01, aspect=30)
    bar.ax.set_title(symbol, loc="center")
    _ticks(bar.ax.yaxis, text)


def _budget_bar(figure: Figure, axes: Axes, scale: ScalarMappable, budgets: Sequence[float]) -> None:
    """The colours of ``budgets`` at the right of ``axes``; with many, every second or third is named."""
    shown = range(0, len(budgets), -(-len(budgets) // 14))
    bar = figure.colorbar(scale, ax=axes, pad=0.01, aspect=30, ticks=list(shown))
    bar.ax.set_yticklabels([flops_text(budgets[i]) for i in shown])
    bar.ax.tick_params(length=0)
    bar.ax.set_title("C", loc="center")


def _footnote(refused: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Why hollow points are hollow."""
    lines = [
        textwrap.shorten(f"hollow, {views.budgets_text(budgets)}: {reason}", 170, placeholder=" …")
        for reason, budgets in refused[:MOST_FOOTNOTES]
    ]
    more = len(refused) - MOST_FOOTNOTES
    return "\n".join([*lines, f"and {more} more reasons, in fit.json"] if more > 0 else lines)

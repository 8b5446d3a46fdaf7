"""Figures for papers, after Hoffmann et al. 2022, figures 1 to 4: PNG, SVG and PDF, drawn without a display.

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

from analysis.fitting.values import Floats, Refused
from analysis.laws.law import Law
from analysis.laws.models import PublishedModel, published_models
from analysis.report import labels, paper, style, views
from analysis.report.curves import curve_window, training_curves
from analysis.result import Backtest, ConventionFit, Envelope, FitResult, Isoflop, Parametric
from analysis.text import count_text, estimate_text, flops_text
from trainer.files import disk_faults, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ("frontier", "models", "envelope", "isoflop", "parametric", "residuals", "backtest")
KINDS: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Formats, each without what would make the bytes of one fit differ from time to time."""
MOST_FOOTNOTES = 4
LETTER, LINE = 0.0135, 0.042
"""What a letter and a line of a model's name take of a panel."""


def write_figures(fit: FitResult, curves: pd.DataFrame | None, out: Path, laws: Sequence[Law] = ()) -> list[Path]:
    """Write the figures that a fit has, of ``FIGURES``, as PNG, SVG and PDF to ``out/figures``.

    An approach that was refused has no figure, and with all three refused there is none; what an earlier fit left
    under such a name is removed.

    Parameters
    ----------
    fit
        What :func:`~analysis.fit.fit_tables` returned.
    curves
        The curves table of the source, ``Tables.curves``; Approach 1 shows the runs' curves where it is given.
    out
        The fit's folder; made where it is missing.
    laws
        Published laws to compare with, each in its own conventions.

    Returns
    -------
    list[Path]
        The files written, three to a figure, in the order of ``FIGURES``.

    Raises
    ------
    MachineFault
        If the disk is full or read-only.
    """
    import matplotlib as mpl

    drawings = _drawings(fit, curves, laws)
    written = []
    with mpl.rc_context(paper.STYLE):
        for name in FIGURES:
            figure = drawings[name]() if name in drawings else None
            if figure is not None:
                figure.draw_without_rendering()  # lays it out, once for all formats
                figure.set_layout_engine("none")
            for kind, metadata in KINDS.items():
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
    primary, level, test = fit.primary, fit.interval.level, fit.backtest
    one, two, three = primary.envelope, primary.isoflop, primary.parametric
    drawings: dict[str, Callable[[], Figure]] = {}
    if views.fitted(primary):
        drawings["frontier"] = lambda: _frontier(primary, level, laws)
    if views.beside_models(primary, laws):
        drawings["models"] = lambda: _models(primary, level, laws, published_models())
    if isinstance(one, Envelope):
        drawings["envelope"] = lambda: _envelope(primary, one, curves, level)
    if isinstance(two, Isoflop):
        drawings["isoflop"] = lambda: _isoflop(primary, two, level)
    if isinstance(three, Parametric):
        drawings["parametric"] = lambda: _parametric(primary, three, level)
        drawings["residuals"] = lambda: _residuals(primary, three)
    if not isinstance(test, Refused):
        drawings["backtest"] = lambda: _backtest(test, primary)
    return drawings


def _frontier(fit: ConventionFit, level: float, laws: Sequence[Law]) -> Figure:
    """N* and D* against C: all approaches, and published laws."""
    figure, panels = paper.panels(2, 3.1)
    for which, axes in enumerate(panels):
        _lines(axes, fit, level, laws, views.frontier_flops(fit), which)
        paper.law_axes(axes, fit, which)
        title = f"bands: {style.interval_text(level)}"
        axes.legend(loc="upper left", title=title, title_fontsize=6.5, alignment="left")
        paper.headroom(axes, 1 + len(views.fitted(fit)) + len(laws))
    return figure


def _models(fit: ConventionFit, level: float, laws: Sequence[Law], models: Sequence[PublishedModel]) -> Figure:
    """The same as far as published models reach, and these as dots."""
    figure, panels = paper.panels(2, 3.4)
    at = np.array([(one.flops, one.params, one.tokens) for one in models])
    flops = np.geomspace(*style.padded(np.concatenate([at[:, 0], fit.rows.flops]), 1.0), views.FRONTIER_POINTS)
    for which, axes in enumerate(panels):
        _lines(axes, fit, level, laws, flops, which)
        values = at[:, 1 + which]
        axes.plot(at[:, 0], values, "o", color="#333333", ms=2.5, zorder=4)
        paper.law_axes(axes, fit, which)
        axes.legend(loc="upper left")
        paper.headroom(axes, len(views.fitted(fit)) + len(laws))
        x, y = (labels.shares(z, *ends) for z, ends in ((at[:, 0], axes.get_xlim()), (values, axes.get_ylim())))
        places = labels.placed(x, y, [one.name for one in models], LETTER, LINE)
        for one, c, value, place in zip(models, at[:, 0], values, places, strict=True):
            if place:
                paper.name(axes, one.name, (float(c), float(value)), place)
    figure.supxlabel("dots: published models, C = 6 N D", fontsize=6.5, x=0.01, ha="left", color="#444444")
    return figure


def _lines(axes: Axes, fit: ConventionFit, level: float, laws: Sequence[Law], flops: Floats, which: int) -> None:
    """All approaches, and published laws."""
    for name, approach in views.fitted(fit).items():
        label = f"{style.TITLES[name]}: {'ab'[which]} = {estimate_text((approach.a, approach.b)[which])}"
        paper.band(axes, views.frontier(fit, approach, flops, level)[which], name, label)
    for i, law in enumerate(laws):
        label = f"{style.law_label(law, fit.conventions)}: {'ab'[which]} = {(law.a, law.b)[which]:.3f}"
        colour = style.LAW_COLOURS[i % len(style.LAW_COLOURS)]
        axes.plot(flops, views.law_frontier(law, flops)[which], color=colour, lw=0.9, ls=(0, (1, 1)), label=label)
    paper.mark_largest(axes, fit)


def _envelope(fit: ConventionFit, approach: Envelope, curves: pd.DataFrame | None, level: float) -> Figure:
    """Approach 1: the curves and their envelope, then who holds it, against C."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LogNorm

    figure, panels = paper.panels(3, 2.5)
    one, drawn = approach.fit, training_curves(fit, curves)
    sizes = np.array([curve.params for curve in drawn] or one.params)
    colours = ScalarMappable(LogNorm(*style.padded(sizes, 1.0001)), cmap=style.COLOUR_MAP)
    lines = [np.column_stack([curve.flops, curve.loss]) for curve in drawn]
    colour_of_line = [colours.to_rgba(np.array(curve.params)) for curve in drawn]
    panels[0].add_collection(LineCollection(lines, colors=colour_of_line, linewidths=0.6 if len(lines) <= 60 else 0.3))
    panels[0].plot(one.flops, one.loss, ".", color="black", ms=1.5)
    panels[0].set(xscale="log", yscale="log")
    x, y = curve_window(drawn, approach)
    panels[0].set_xlim(*x)
    panels[0].set_ylim(*y)
    panels[0].set_title("black: lowest loss at each C")
    panels[0].set_xlabel(style.flops_label(fit.conventions))
    panels[0].set_ylabel(style.loss_label(fit.conventions))
    paper.ticks(panels[0].xaxis, flops_text, most=5)
    paper.ticks(panels[0].yaxis, "{:g}".format)
    paper.bar(figure, panels[0], colours, "N", count_text)
    flops = np.geomspace(one.flops.min() / 1.3, one.flops.max() * 1.3, views.FRONTIER_POINTS)
    _two_laws(panels[1:], fit, approach, "envelope", level, flops, one.flops, (one.params, one.tokens), "black", 3)
    return figure


def _isoflop(fit: ConventionFit, approach: Isoflop, level: float) -> Figure:
    """Approach 2: valleys and their minima, then these against C."""
    valleys, rows = approach.fit.valleys, fit.rows
    refused = views.refusals(valleys)
    figure, panels = paper.panels(3, 2.5 + 0.13 * len(_footnote(refused).splitlines()))
    colours, scale = paper.budget_colours([valley.budget for valley in valleys])
    for i, valley in enumerate(valleys):
        colour, n, loss = colours(i), rows.params[valley.rows], rows.loss[valley.rows]
        if valley.refused is not None:
            panels[0].scatter(n, loss, s=11, facecolors="none", edgecolors=[colour], linewidths=0.7)
            continue
        panels[0].scatter(n, loss, color=[colour], **paper.point(len(rows)))
        panels[0].plot(*views.valley_line(fit, valley), color=colour, lw=0.9)
    panels[0].set_xscale("log")
    panels[0].set_xlabel(style.params_label(fit.conventions))
    panels[0].set_ylabel(style.loss_label(fit.conventions))
    paper.ticks(panels[0].xaxis, count_text, most=5)
    panels[0].set_title("diamonds: minima")
    paper.budget_bar(figure, panels[0], scale, [valley.budget for valley in valleys])
    flops, *found, lowest = views.minima(approach)
    panels[0].plot(found[0], lowest, "D", color="black", mec="white", mew=0.5, ms=3.8, zorder=4)
    span = np.geomspace(flops.min() / 1.3, flops.max() * 1.3, views.FRONTIER_POINTS)
    shades = [colours(i) for i, valley in enumerate(valleys) if valley.refused is None]
    _two_laws(panels[1:], fit, approach, "isoflop", level, span, flops, (found[0], found[1]), shades, 16)
    if refused:
        figure.supxlabel(_footnote(refused), fontsize=6.5, x=0.01, ha="left", color="#444444")
    return figure


def _parametric(fit: ConventionFit, approach: Parametric, level: float) -> Figure:
    """Approach 3: the fitted surface with the rows and the frontier, slices along budgets."""
    figure, panels = paper.panels(2, 2.8)
    _contours(figure, panels[0], fit, approach, level)
    _slices(figure, panels[1], fit, approach)
    return figure


def _contours(figure: Figure, axes: Axes, fit: ConventionFit, approach: Parametric, level: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    at, rows = views.surface(fit, approach), fit.rows
    norm = LogNorm(at.levels[0], at.levels[-1])
    lines = axes.contour(at.flops, at.params, at.loss, levels=at.levels, cmap=style.COLOUR_MAP, norm=norm)
    lines.set_linewidth(0.7)
    axes.scatter(rows.flops, rows.params, c=rows.loss, cmap=style.COLOUR_MAP, norm=norm, **paper.point(len(rows), 8))
    paper.band(axes, views.frontier(fit, approach, at.flops, level)[0], "parametric")
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(at.flops[0], at.flops[-1])
    axes.set_ylim(at.params[0], at.params[-1])
    axes.set_xlabel(style.flops_label(fit.conventions))
    axes.set_ylabel(style.params_label(fit.conventions))
    axes.grid(visible=False)
    paper.ticks(axes.xaxis, flops_text, most=5)
    paper.ticks(axes.yaxis, count_text)
    axes.set_title("fitted loss; line: N*(C)")
    paper.bar(figure, axes, ScalarMappable(norm, cmap=style.COLOUR_MAP), "L", "{:g}".format)


def _slices(figure: Figure, axes: Axes, fit: ConventionFit, approach: Parametric) -> None:
    drawn = views.slices(fit, approach)
    colours, scale = paper.budget_colours([at.budget for at in drawn])
    for i, at in enumerate(drawn):
        axes.plot(at.params, at.loss, color=colours(i), lw=0.9)
        axes.scatter(fit.rows.params[at.rows], fit.rows.loss[at.rows], color=[colours(i)], **paper.point(len(fit.rows)))
    axes.set_xscale("log")
    axes.set_xlabel(style.params_label(fit.conventions))
    axes.set_ylabel(style.loss_label(fit.conventions))
    paper.ticks(axes.xaxis, count_text, most=5)
    axes.set_title("fitted loss along budgets")
    paper.budget_bar(figure, axes, scale, [at.budget for at in drawn])


def _residuals(fit: ConventionFit, approach: Parametric) -> Figure:
    """What Approach 3 leaves unexplained, against C, N and D, and beside a normal distribution."""
    figure, panels = paper.panels(4, 2.2)
    rows, percent = fit.rows, views.residual_percent(approach)
    dot = {"color": style.COLOURS["parametric"], **paper.point(len(rows), 9)}
    for axes, x, label, text in zip(
        panels,
        (rows.flops, rows.params, rows.tokens),
        (style.flops_label(fit.conventions), style.params_label(fit.conventions), style.tokens_label()),
        (flops_text, count_text, count_text),
        strict=False,
    ):
        axes.scatter(x, percent, **dot)
        axes.set_xscale("log")
        axes.set_xlabel(label)
        paper.ticks(axes.xaxis, text, most=3)
    order, quantiles, line = views.normal_quantiles(percent)
    panels[3].plot(quantiles, line, color="black", lw=0.6)
    panels[3].scatter(quantiles, percent[order], **dot)
    panels[3].set_xlabel("normal quantile")
    for axes in panels:
        axes.axhline(0, color="black", lw=0.6)
        axes.set_ylim(*panels[0].get_ylim())
    panels[0].set_ylabel("loss, measured / fitted − 1 (%)")
    return figure


def _backtest(test: Backtest, fit: ConventionFit) -> Figure:
    """What fits to the smaller budgets foretold of the larger ones."""
    told = views.foretold(test)
    figure, panels = paper.panels(max(2, len(told)), 2.5)
    origins = views.origins(test).tolist()
    colours, _ = paper.budget_colours(origins)
    for axes, (name, held) in zip(panels, told.items(), strict=False):
        ends = style.padded(np.concatenate([at.flops for at in held]), 1.6)
        for number, at in enumerate(held):
            kept = views.evenly(len(at.measured), paper.MANY)
            measured, low, high = (values[kept] for values in views.deviations(at))
            x = at.flops[kept] * views.offset(number, len(held), ends)
            colour = colours(origins.index(at.fitted_to))
            axes.vlines(x, low, high, color=colour, lw=0.6, alpha=0.6)
            axes.plot(x, measured, "D", color=colour, ms=2.2, label=f"fitted to {flops_text(at.fitted_to)}")
        axes.axhline(0, color="black", lw=0.6)
        axes.set_xscale("log")
        axes.set_xlim(*ends)
        axes.set_ylim(*views.deviation_ends(held))
        axes.set_xlabel(style.flops_label(fit.conventions))
        paper.ticks(axes.xaxis, flops_text, most=3)
        axes.set_title("loss, Approach 3" if name == "loss" else f"N*, {style.TITLES[name].split(',')[0]}")
    for axes in panels[len(told) :]:
        axes.set_axis_off()
    panels[0].set_ylabel("measured / predicted − 1 (%)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


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
    bands = views.frontier(fit, approach, span, level)
    for which, axes in enumerate(panels):
        axes.scatter(flops, found[which], c=colour, s=size, linewidths=0, zorder=3)
        paper.band(axes, bands[which], name)
        paper.law_axes(axes, fit, which)
        axes.set_title(f"{'ab'[which]} = {estimate_text((approach.a, approach.b)[which])}")


def _footnote(refused: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Why hollow points are hollow."""
    lines = [
        textwrap.shorten(f"hollow, {style.budgets_text(budgets)}: {reason}", 170, placeholder=" …")
        for reason, budgets in refused[:MOST_FOOTNOTES]
    ]
    more = len(refused) - MOST_FOOTNOTES
    return "\n".join([*lines, f"and {more} more reasons, in fit.json"] if more > 0 else lines)

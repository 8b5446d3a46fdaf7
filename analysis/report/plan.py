"""``plan.html``: what a sweep will train, and how precisely that tells its target, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.fitting.optimum import optimum
from analysis.fitting.values import Cost, Floats
from analysis.planning.compare import Curve
from analysis.report import plot, style
from analysis.report.page import Page, note, paragraph, table
from analysis.text import count_text, flops_text
from trainer.files import write_whole

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ROLES = {
    "planned": ("#0072B2", "circle"),
    "optimal": ("#0072B2", "circle"),
    "reserved": ("#D55E00", "diamond"),
    "pinned": ("#CC79A7", "square"),
}
"""Colour and symbol of a point by why it is there."""
MEANING = {
    "planned": "planned point",
    "optimal": "chosen for what it tells",
    "reserved": "reserved to test the form",
    "pinned": "pinned by hand",
}
LINES = ("#0072B2", "#009E73", "#888888", "#E69F00")
MOST_LINES = 12
"""Budget lines."""
LABELLED = 1.6
"""By this factor of N the plane is wider on the left, where the lines' labels stand clear of the points."""
LEVEL = 0.9
"""Of the band of the prior's N*(C)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanPicture:
    """What is drawn of a plan; arrays of one length."""

    params: Floats
    tokens: Floats
    flops: Floats
    role: Sequence[str]
    """Of ``ROLES``."""
    done: Floats
    """1 where the point is trained already, else 0."""
    laws: Floats
    """(K, 5): the prior."""
    cost: Cost
    counts: str
    """How N is counted, in words."""


def write_plan_report(
    path: Path,
    *,
    title: str,
    lead: str,
    picture: PlanPicture,
    curves: Sequence[Curve],
    target: str,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]], str]],
    remarks: Sequence[str],
) -> None:
    """Write the page to ``path``, whole.

    Parameters
    ----------
    target
        What the curves' errors are of, in words.
    tables
        Heading, column names, rows and alignment of each.
    """
    page = Page(title, lead)
    caption = (
        "Every point of the plan. Grey lines have one C each; the black line is where the prior's law has its "
        f"compute-optimal points, with {100 * LEVEL:g} % of its uncertainty. Hollow points are trained already."
    )
    keys = [plot.Key(MEANING[role], ROLES[role][0]) for role in dict.fromkeys(picture.role)]
    keys.append(plot.Key("N*(C) of the prior", "#000000"))
    where = page.charts("points", [plot.Panel("Points in the (N, D) plane", plane(picture))], caption, keys)
    caption = (
        f"Standard error of {target} against the FLOPs of the sweep, by Approach 3, linearised: what this plan gives "
        "(star), and what other designs would under the same prior and noise. A design within a wider window trusts "
        "the law's form further from the optimum."
    )
    keys = [plot.Key(curve.name, colour) for curve, colour in zip(curves, LINES, strict=False)]
    worth = page.charts("precision", [plot.Panel("Precision against cost", precision(curves))], caption, keys)
    page.section("Pictures", where, worth)
    for heading, head, rows, align in tables:
        page.section(heading, table(head, rows, align, tall=len(rows) > 30))
    page.section("What this rests on", note(list(remarks), "plain") if remarks else paragraph("Nothing further."))
    write_whole(path, page.render())


def plane(picture: PlanPicture) -> Figure:
    """Points, budget lines and the prior's optima in the (N, D) plane."""
    n, d = (style.padded(values, 1.6) for values in (picture.params, picture.tokens))
    n = (n[0] / LABELLED, n[1])
    figure = plot.blank(
        plot.log_axis(f"N, {picture.counts} parameters", *n, count_text, 5),
        plot.log_axis(style.tokens_label(), *d, count_text, 5),
    )
    along = np.geomspace(n[0], n[1], 40)
    for budget in _lines(picture.flops):
        tokens = budget / picture.cost.flops_per_token(along)
        plot.line(figure, along, tokens, {"color": "#c4c4c4", "width": 1})
        inside = np.flatnonzero((tokens > d[0]) & (tokens < d[1]))
        if len(inside):
            at = inside[1:2]
            plot.names(figure, along[at], tokens[at], [flops_text(budget)], "middle right")
    reach = np.geomspace(picture.flops.min() / 4, picture.flops.max() * 4, 40)
    best_n, best_d, _ = optimum(picture.laws, picture.cost, reach)
    tails = [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2]
    (low, middle, high), tokens = np.quantile(best_n, tails, axis=0), np.median(best_d, axis=0)
    if len(picture.laws) > 1:
        around, back = np.concatenate([low, high[::-1]]), np.concatenate([tokens, tokens[::-1]])
        fill: dict[str, Any] = {"fill": "toself", "fillcolor": "#000000", "opacity": 0.12, "hoverinfo": "skip"}
        figure.add_scatter(x=around, y=back, mode="lines", line={"width": 0}, **fill)
    plot.line(figure, middle, tokens, {"color": "#000000", "width": 1.5})
    for role in dict.fromkeys(picture.role):
        colour, symbol = ROLES[role]
        for done, hollow in ((0, ""), (1, "-open")):
            kept = np.flatnonzero([each == role and bool(was) == bool(done)
                                   for each, was in zip(picture.role, picture.done, strict=True)])  # fmt: skip
            marker: dict[str, Any] = {
                "color": colour,
                "symbol": symbol + hollow,
                "size": 8 if role == "optimal" else 10,
            }
            texts = [
                f"{MEANING[role]}{', trained' if done else ''}\nN {count_text(picture.params[i])}, "
                f"D {count_text(picture.tokens[i])}\nC {flops_text(picture.flops[i])}"
                for i in kept
            ]
            if len(kept):
                plot.dots(figure, picture.params[kept], picture.tokens[kept], marker, texts)
    return figure


def precision(curves: Sequence[Curve]) -> Figure:
    """Error against cost, a line or a star for each design."""
    costs = np.concatenate([curve.flops for curve in curves])
    errors = np.concatenate([curve.errors for curve in curves])
    x, y = style.padded(costs, 1.4), style.padded(errors[np.isfinite(errors)], 1.2)
    figure = plot.blank(
        plot.log_axis("FLOPs of the sweep", *x, flops_text, 5), plot.log_axis("standard error", *y, "{:.3g}".format)
    )
    for curve, colour in zip(curves, LINES, strict=False):
        texts = [
            f"{curve.name}\n{flops_text(cost)} FLOPs: ±{error:.3g}"
            for cost, error in zip(curve.flops, curve.errors, strict=True)
        ]
        star = len(curve.flops) == 1
        marker = {"color": colour, "size": 15 if star else 6, "symbol": "star" if star else "circle"}
        if not star:
            plot.line(figure, curve.flops, curve.errors, {"color": colour, "width": 2})
        plot.dots(figure, curve.flops, curve.errors, marker, texts)
    return figure


def _lines(flops: Floats) -> Floats:
    """Budgets to draw: the points' own where they are few, else round ones."""
    own = np.unique([float(f"{c:.2g}") for c in flops])
    if len(own) <= MOST_LINES:
        return own
    return np.array(style.log_ticks(float(flops.min()), float(flops.max()), MOST_LINES))

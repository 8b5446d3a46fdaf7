"""Predictions as the terminal shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.markup import escape

from analysis.fitting.values import Estimate
from analysis.laws.forms import Law
from analysis.laws.models import Distance
from analysis.predict.prediction import Prediction
from analysis.predict.question import Kind
from analysis.predict.reach import cost_text
from analysis.text import SHORT_TITLES, count_text, estimate_text, flops_text
from sweeps.terminal import stdout, table

EXTRAS: dict[str, tuple[str, Callable[[float], str]]] = {
    "epochs": ("<epochs", count_text),
    "loss_fresh": ("<loss, all fresh", "{:.3f}".format),
    "params_ratio": ("<N/N*", "{:.3g}".format),
    "overspend": ("<C/C* of this loss", "{:.3g}".format),
    "flops_total": ("<C with use", flops_text),
    "saving": ("<saved", "{:.1%}".format),
}
"""Heading and text of what a kind of question brings besides."""


def print_predictions(predictions: Sequence[Prediction]) -> None:
    """What each law or approach says, a table for each way to count N and C; then how far to trust it."""
    for counts in dict.fromkeys(map(_counts, predictions)):
        _print_alike([p for p in predictions if _counts(p) == counts])
    for statement in dict.fromkeys(p.statement for p in predictions):
        stdout().print(escape(statement), soft_wrap=True)


def _print_alike(predictions: Sequence[Prediction]) -> None:
    """Predictions that count N and C alike, and where one more measurement would fall."""
    first = predictions[0]
    losses: dict[str, str] = {}  # the unit, and who was the first to use it
    for p in predictions:
        losses.setdefault(p.conventions.loss, p.by)
    units = first.conventions.loss + "".join(f"; of {by} in {unit}" for unit, by in list(losses.items())[1:])
    star = "*" if first.kind is Kind.optimum else ""
    extras = [name for name in EXTRAS if any(name in p.extra for p in predictions)]
    shown = table(
        "<by", "<C", f"<N{star}", f"<D{star}", f"<D{star}/N{star}", "<loss", *(EXTRAS[name][0] for name in extras),
        title=f"N counts {first.conventions.params.replace('_', '-')} parameters, C by the {first.conventions.flops} "
        f"count, loss in {escape(units)}",
    )  # fmt: skip
    for p in predictions:
        ratio = None if not (p.tokens.value and p.params.value) else p.tokens.value / p.params.value
        sizes = (estimate_text(one, count_text) for one in (p.params, p.tokens))
        extra = (estimate_text(p.extra.get(name, Estimate(value=None)), EXTRAS[name][1]) for name in extras)
        cells = (estimate_text(p.flops, flops_text), *sizes, count_text(ratio), estimate_text(p.loss), *extra)
        shown.add_row(escape(SHORT_TITLES.get(p.by, p.by)), *cells)
        if any(one.prediction for one in (p.params, p.tokens, p.loss)):
            n, d = (_range_text(one, count_text) for one in (p.params, p.tokens))
            loss = _range_text(p.loss, "{:.3f}".format)
            shown.add_row("  one measured", "", n, d, "", loss, *("" for _ in extras))
    stdout().print(shown)


def _counts(p: Prediction) -> tuple[str, str]:
    return p.conventions.params, p.conventions.flops


def print_models(law: Law, distances: Sequence[Distance]) -> None:
    """Published models, and how far each lies from compute-optimal."""
    shown = table(
        "<model", "year", "N", "D", "D/N", "6 N D", "N/N*", "C/C* of its loss",
        title=f"Published models beside {escape(law.name)}: N counts {law.params.value.replace('_', '-')} parameters, "
        f"C by the {law.flops.value} count",
    )  # fmt: skip
    for at in distances:
        model = at.model
        sizes = (count_text(one) for one in (model.params, model.tokens, model.tokens / model.params))
        wasted = "–" if at.overspend is None else f"{at.overspend:.2f}"
        shown.add_row(model.name, str(model.year), *sizes, flops_text(model.flops), f"{at.params_ratio:.2f}", wasted)
    stdout().print(shown)
    if beyond := cost_text([at.model.params for at in distances], law.cost, law.params_range):
        stdout().print(escape(f"{beyond} N/N* and C/C* of such models rest on that."), soft_wrap=True)


def print_meaning() -> None:
    """What the ratios of :func:`print_models` mean."""
    stdout().print(
        "N/N*: above 1, too large for its compute. C/C*: its compute over that of the optimal model of equal loss, "
        "were this law true of it; most were trained on other data, and smaller than optimal on purpose, for use.",
        soft_wrap=True,
    )


def models_json(law: Law, distances: Sequence[Distance]) -> list[dict[str, Any]]:
    """As ``format=json`` prints them."""
    return [
        {"by": law.name, "conventions": {"params": law.params.value, "flops": law.flops.value, "loss": law.loss_unit}}
        | {name: getattr(at.model, name) for name in ("name", "year", "params", "tokens", "flops", "source")}
        | {name: getattr(at, name) for name in ("params_ratio", "overspend", "loss")}
        | {"flops_of_law": at.flops, "beware": cost_text([at.model.params], law.cost, law.params_range) or None}
        for at in distances
    ]


def _range_text(one: Estimate, text: Callable[[float], str]) -> str:
    return "–" if one.prediction is None else f"{text(one.prediction[0])} to {text(one.prediction[1])}"

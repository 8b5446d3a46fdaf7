"""Designs: which (shape, tokens) pairs a sweep asks for. Pure; seeds and axes are crossed in later (sweeps.plan)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.laws.law import Law
from sweeps.config import CentreConfig, Design, SweepConfig
from sweeps.planning.ladder import ladder, pick
from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.shape import Shape

MOST_SIZES = 100
WIDEST_SPACING = 100.0
STEEPEST = 10.0
"""Of exponents that say where sizes are centred."""


@dataclass(frozen=True)
class Target:
    """A point as the design wants it; ``tokens`` is not yet whole batches, ``budget`` None where none was asked."""

    shape: Shape
    tokens: float
    budget: float | None = None
    seeds: tuple[int, ...] | None = None
    """Which of the sweep's; None for all."""


def targets(
    sweep: SweepConfig, model: ModelConfig, *, vocabulary: int, sequence: int, law: Callable[[str], Law]
) -> list[Target]:
    """The design's points, budgets first, sizes rising.

    Parameters
    ----------
    law
        Finds a published law by name, for ``sweep.centre.law``.

    Raises
    ------
    UserError
        If a field the design needs is missing, not a positive number, or off the shape ladder.
    """
    shapes = ladder(model, vocabulary=vocabulary, sequence=sequence)
    if sweep.design is Design.isoflop:
        return _isoflop(sweep, model, shapes, law)
    if sweep.design is Design.horizons:
        horizons = numbers("sweep.horizons", sweep.horizons)
        return [Target(shape, tokens) for shape in _listed(sweep, model, shapes) for tokens in horizons]
    if sweep.design is Design.grid:
        ratios = numbers("sweep.tokens_per_param", sweep.tokens_per_param)
        return [
            Target(shape, ratio * shape.params_total) for shape in _listed(sweep, model, shapes) for ratio in ratios
        ]
    return _points(sweep, model, shapes)


def numbers(field: str, values: Any) -> list[float]:
    """``values`` as positive finite numbers, no two alike.

    Raises
    ------
    UserError
        If it is no list, empty, or holds anything else.
    """
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"{field}={values!r} must list at least one positive number, with commas between several.")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise UserError(f"{field} holds {value!r}; every entry must be a positive number.")
    if len(set(values)) < len(values):
        raise UserError(f"{field}={list(values)} names a value twice; give each one once.")
    return [float(value) for value in values]


def _isoflop(
    sweep: SweepConfig, model: ModelConfig, shapes: Sequence[Shape], law: Callable[[str], Law]
) -> list[Target]:
    budgets = numbers("sweep.budgets", sweep.budgets)
    found = []
    for budget in budgets:
        if isinstance(sweep.sizes, int) and not isinstance(sweep.sizes, bool):
            sizes = spaced(centre_params(sweep.centre, budget, shapes, law), sweep.sizes, sweep.spacing)
        else:
            sizes = numbers("sweep.sizes", sweep.sizes)
        found += [
            Target(shape, budget / shape.flops_per_token(), budget)
            for shape in sorted(pick(shapes, sizes, model), key=lambda shape: shape.params_non_embedding)
        ]
    return found


def spaced(centre: float, count: int, spacing: float) -> list[float]:
    """``count`` sizes around ``centre``, neighbours a factor ``spacing`` apart."""
    if not 1 <= count <= MOST_SIZES:
        raise UserError(f"sweep.sizes={count} must be 1 to {MOST_SIZES}; 6 or more show a valley well.")
    if not 1 < spacing <= WIDEST_SPACING:
        raise UserError(
            f"sweep.spacing={spacing} must be above 1 and at most {WIDEST_SPACING:g}: the factor between neighbours."
        )
    return [centre * spacing ** (i - (count - 1) / 2) for i in range(count)]


def centre_params(centre: CentreConfig, budget: float, shapes: Sequence[Shape], law: Callable[[str], Law]) -> float:
    """Non-embedding parameters around which a budget's sizes lie.

    A law is asked shape by shape, in its own count of parameters and with the tokens that the budget really buys each
    shape, so no conversion of its optimum is needed.
    """
    if centre.n_opt is not None and centre.law is None:
        at = numbers("sweep.centre.at", [centre.at])[0]
        n_opt = numbers("sweep.centre.n_opt", [centre.n_opt])[0]
        if not -STEEPEST <= centre.exponent <= STEEPEST:
            raise UserError(f"sweep.centre.exponent={centre.exponent} must be a number such as 0.5.")
        return float(n_opt * (budget / at) ** centre.exponent)
    if centre.law is None or centre.n_opt is not None:
        raise UserError(
            f"sweep.centre has law={centre.law} and n_opt={centre.n_opt}; state one of them: sweep.centre.law=<name>, "
            "or sweep.centre.n_opt=<parameters> with sweep.centre.at=<FLOPs>."
        )
    known = law(centre.law)
    best = min(shapes, key=lambda shape: known.excess(shape.params(known.params), budget / shape.flops_per_token()))
    if best in (shapes[0], shapes[-1]):
        raise UserError(
            f"sweep.budgets: at {budget:.4g} FLOPs the optimum of {centre.law} lies off the shape ladder "
            f"({shapes[0].params_non_embedding:.4g} to {shapes[-1].params_non_embedding:.4g} parameters); "
            "choose another model= or budget, or state sweep.centre.n_opt and sweep.centre.at."
        )
    return float(best.params_non_embedding)


def _listed(sweep: SweepConfig, model: ModelConfig, shapes: Sequence[Shape]) -> list[Shape]:
    if isinstance(sweep.sizes, int):
        raise UserError(
            f"sweep.sizes={sweep.sizes}: design {sweep.design.value} needs a list of non-embedding parameter counts, "
            "e.g. sweep.sizes=[1e7,3e7,1e8]."
        )
    return pick(shapes, numbers("sweep.sizes", sweep.sizes), model)


def _points(sweep: SweepConfig, model: ModelConfig, shapes: Sequence[Shape]) -> list[Target]:
    """Points of a CSV; rows naming the same size share one shape."""
    if not sweep.points:
        raise UserError("sweep.points is empty; design points needs a CSV file with columns params and tokens.")
    import pandas as pd  # here, because most designs do without and it takes long to import

    path = Path(sweep.points)
    try:
        table = pd.read_csv(path, comment="#")
    except (OSError, ValueError) as error:
        raise UserError(
            f"sweep.points={path} cannot be read as CSV ({error}); give a file with a header row."
        ) from None
    by_shape = {"layers", "d_model"} <= set(table.columns)
    needed = ["layers", "d_model", "tokens"] if by_shape else ["params", "tokens"]
    absent = [name for name in needed if name not in table.columns]
    if absent or table.empty:
        raise UserError(
            f"sweep.points={path} has columns {', '.join(map(str, table.columns))} and {len(table)} rows; it needs "
            "params and tokens, or layers, d_model and tokens, and at least one row."
        )
    for row, values in enumerate(table[needed].to_dict("records"), start=1):
        for name, value in values.items():
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise UserError(
                    f"sweep.points={path}, row {row}: {name}={value} must be a positive number; correct it."
                )
    if by_shape:
        known = {(shape.layers, shape.d_model): shape for shape in shapes}
        chosen = []
        for row, key in enumerate(zip(table["layers"], table["d_model"], strict=True), start=1):
            if key not in known:
                raise UserError(
                    f"sweep.points={path}, row {row}: layers={key[0]}, d_model={key[1]} is off the shape ladder; "
                    "widen it (model.width_step, model.aspect_spread, model.max_width) or correct the row."
                )
            chosen.append(known[key])
    else:
        sizes = sorted({float(size) for size in table["params"]})
        shape_of = dict(zip(sizes, pick(shapes, sizes, model), strict=True))
        chosen = [shape_of[float(size)] for size in table["params"]]
    return [Target(shape, float(tokens)) for shape, tokens in zip(chosen, table["tokens"], strict=True)]

"""The shape ladder: which transformers a sweep may draw its sizes from, and which one fits a wanted size best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.shape import Shape

ASPECT_WEIGHT = 0.5
"""What a factor e off the wanted aspect costs, against a factor e off the wanted size."""
MOST_WIDTHS = 1024
"""Widths of a ladder, at most: more take long to list and lie closer than anybody can tell apart."""
REACH = 1.6
"""A size further than this factor from every shape is off the ladder."""


def ladder(model: ModelConfig, *, vocabulary: int, sequence: int) -> list[Shape]:
    """Every shape of the family whose width per layer lies near the wanted aspect, by rising size.

    Widths are multiples of ``width_step``; the heads have the even size nearest to ``head_size`` that divides the
    width. No two shapes have the same layers and width.
    """
    _check(model)
    shapes = []
    for d_model in range(model.width_step, model.max_width + 1, model.width_step):
        head_size = nearest_head_size(d_model, model.head_size)
        fewest = max(1, math.ceil(d_model / (model.aspect * model.aspect_spread)))
        most = min(model.max_layers, max(1, math.floor(d_model * model.aspect_spread / model.aspect)))
        shapes += [
            Shape(
                layers=layers,
                d_model=d_model,
                heads=d_model // head_size,
                head_size=head_size,
                ffw=max(1, round(model.ffw_ratio * d_model / model.width_step)) * model.width_step,
                vocabulary=vocabulary,
                sequence=sequence,
                activation=model.activation,
                positions=model.positions,
                tied_head=model.tied_head,
                qk_norm=model.qk_norm,
            )
            for layers in range(fewest, most + 1)
        ]
    return sorted(shapes, key=lambda shape: shape.params_non_embedding)


def nearest_head_size(d_model: int, wanted: int) -> int:
    """The even divisor of ``d_model`` nearest to ``wanted`` by ratio."""
    divisors = [size for size in range(2, d_model + 1, 2) if d_model % size == 0]
    return min(divisors, key=lambda size: (abs(math.log(size / wanted)), size))


def pick(shapes: Sequence[Shape], sizes: Sequence[float], model: ModelConfig) -> list[Shape]:
    """For each wanted size the shape that fits it best, no shape twice.

    Parameters
    ----------
    sizes
        Non-embedding parameters.

    Raises
    ------
    UserError
        If a size lies off the ladder, or the ladder has too few shapes near it.
    """
    free = {shape: _log_misfit_terms(shape, model) for shape in shapes}
    taken = []
    for size in sizes:
        misfits = {shape: abs(log_size - math.log(size)) for shape, (log_size, _) in free.items()}
        near = [shape for shape, misfit in misfits.items() if misfit <= math.log(REACH)]
        if not near:
            raise UserError(
                f"sweep.sizes: no shape that is not already taken lies near {size:.4g} non-embedding parameters; the "
                f"ladder has {len(shapes)} shapes from {shapes[0].params_non_embedding:.4g} to "
                f"{shapes[-1].params_non_embedding:.4g}; choose sizes inside it and further apart, or widen it "
                "(model.width_step, model.aspect_spread, model.max_width)."
            )
        best = min(near, key=lambda shape: misfits[shape] + free[shape][1])
        taken.append(best)
        del free[best]
    return taken


def _log_misfit_terms(shape: Shape, model: ModelConfig) -> tuple[float, float]:
    """A shape's log size, and what its aspect costs it against shapes of other sizes."""
    aspect = shape.d_model / shape.layers
    return math.log(shape.params_non_embedding), ASPECT_WEIGHT * abs(math.log(aspect / model.aspect))


def _check(model: ModelConfig) -> None:
    for name in ("width_step", "head_size", "max_layers", "max_width"):
        value = getattr(model, name)
        if value < 1:
            raise UserError(f"model.{name}={value} is not positive; give a whole number of 1 or more.")
    if model.width_step % 2:
        raise UserError(f"model.width_step={model.width_step} is odd; heads need an even width, so give an even step.")
    if model.max_width > MOST_WIDTHS * model.width_step:
        raise UserError(
            f"model.max_width={model.max_width} is more than {MOST_WIDTHS} times model.width_step={model.width_step}; "
            "lower it, or take wider steps."
        )
    for name, least in (("aspect", 0.0), ("ffw_ratio", 0.0), ("aspect_spread", 1.0)):
        value = getattr(model, name)
        if not (math.isfinite(value) and value > least):
            raise UserError(f"model.{name}={value} must be a number above {least:g}.")

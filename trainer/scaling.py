"""Parametrisations under which one learning rate serves models of every size.

With m = width / base width and k = layers / base layers, and everything as in the standard parametrisation at the base:

===================  ==========================  =============  =======  ==================
tensor               start (std)                 rate           decay    multiplier
===================  ==========================  =============  =======  ==================
tables, as inputs    1 / sqrt(base width)        1              1        1
matrices inside      1 / sqrt(columns)           1 / m          m        1
into the residual    1 / sqrt(2 L' columns)      1 / m          m        1 / k (completep)
head, tied or not    1 / sqrt(base width)        1              1        1 / m
gains                1                           1              (none)   1
===================  ==========================  =============  =======  ==================

L' is the model's layers under mup, the base's under completep. AdamW's epsilon falls by 1 / m, and inside the layers by
1 / k besides. Heads keep nearly one size over a ladder, so attention keeps its 1 / sqrt(head size).

References
----------
Yang et al., "Tensor Programs V" (2022), table 8 (mup, for Adam). Dey et al., "Don't be lazy: CompleteP enables
compute-efficient deep transformers" (2025), table 1 and equation 40, with alpha = 1 (completep). Compared with their
authors' https://github.com/EleutherAI/nanoGPT-mup (its table, and the optimiser's groups of its completep branch,
epsilons included) and https://github.com/microsoft/mup/issues/7 (table 8 gives orders, to be tuned at a base model).
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import Parametrisation
from trainer.recipe import Scaling
from trainer.shape import Shape


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What a parametrisation makes of a shape's tensors; all are 1 in the standard one, and at the base."""

    width: float = 1.0
    """m"""
    depth: float = 1.0
    """k"""
    table_columns: int
    """What a table's start is the inverse root of."""
    residual_layers: int
    """L'"""


def factors(shape: Shape, scaling: Scaling | None) -> Factors:
    """Those of a shape under a parametrisation, None for the standard one."""
    if scaling is None:
        return Factors(table_columns=shape.d_model, residual_layers=shape.layers)
    deep = scaling.rule is Parametrisation.completep
    return Factors(
        width=shape.d_model / scaling.width,
        depth=shape.layers / scaling.layers if deep else 1.0,
        table_columns=scaling.width,
        residual_layers=scaling.layers if deep else shape.layers,
    )

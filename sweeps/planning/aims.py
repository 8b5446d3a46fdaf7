"""What an optimal design is to pin, from the config's words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from analysis.config import Quantity
from analysis.planning.information import Target as Aim
from sweeps.config import TargetConfig
from trainer.errors import UserError
from trainer.shape import ParamCount, Shape


def recounted(aims: Sequence[Aim], shapes: Sequence[Shape], stated: ParamCount, wanted: ParamCount) -> Sequence[Aim]:
    """Targets whose N is counted as ``stated``, counted as ``wanted``: as in the shapes nearest in size."""
    if stated is wanted or all(aim.quantity is not Quantity.loss for aim in aims):
        return aims
    pairs = sorted((shape.params(stated), shape.params(wanted)) for shape in shapes)
    own, other = np.log(np.array(pairs, dtype=np.float64)).T
    return [
        replace(aim, params=aim.params * math.exp(float(np.interp(math.log(aim.params), own, other - own))))
        if aim.quantity is Quantity.loss
        else aim
        for aim in aims
    ]


def aims_of(target: TargetConfig) -> list[Aim]:
    """What is to be pinned, with weights.

    Raises
    ------
    UserError
        If a target lacks its numbers.
    """
    own = {name: getattr(target, name) for name in ("quantity", "flops", "params", "tokens", "weight")}
    out = []
    for place, entry in [("sweep.target", own), *(("sweep.target.also", one) for one in target.also)]:
        known = {"quantity", "flops", "params", "tokens", "weight"}
        if not isinstance(entry, Mapping) or not {"quantity"} <= entry.keys() <= known:
            raise UserError(f"{place} holds {entry!r}; give a quantity with its numbers: {', '.join(sorted(known))}.")
        numbers: dict[str, Any] = {name: value for name, value in entry.items() if name != "quantity"}
        try:
            quantity = Quantity(entry["quantity"])
            out.append(Aim(quantity=quantity, **{n: float(v) for n, v in numbers.items() if v is not None}))
        except (ValueError, TypeError):
            raise UserError(
                f"{place}={dict(entry)!r} is no target; quantity is one of {', '.join(Quantity)}, the rest numbers."
            ) from None
        except UserError as error:
            raise UserError(f"{place}: {str(error).removeprefix('target ')}") from None
    if target.half_width is not None and not 0 < target.half_width < 1:
        raise UserError(f"sweep.target.half_width={target.half_width:g} must lie between 0 and 1, e.g. 0.05 for ±5 %.")
    return out

"""Names beside dots, as many as there is room for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.fitting.values import Floats

POSITIONS = ("middle right", "middle left", "top center", "bottom center")
"""Where a name may stand, the best first; plotly's words."""
DOT = 0.012
"""Half the size of a dot, as a share of the axes."""

Box = tuple[float, float, float, float]


def placed(x: Floats, y: Floats, names: Sequence[str], letter: float, line: float) -> list[str]:
    """Where each name stands beside its dot, "" for the names there is no room for; the first come first.

    Parameters
    ----------
    x, y
        (n,): the dots, as shares of the axes.
    letter, line
        Width of a letter and height of a line, as shares of the axes.
    """
    taken: list[Box] = [(a - DOT, b - DOT, a + DOT, b + DOT) for a, b in zip(x, y, strict=True)]
    found = []
    for a, b, name in zip(x, y, names, strict=True):
        boxes = zip(POSITIONS, _boxes(float(a), float(b), letter * len(name), line), strict=True)
        where, box = next(
            ((where, box) for where, box in boxes if _inside(box) and not any(_overlap(box, at) for at in taken)),
            ("", None),
        )
        if box is not None:
            taken.append(box)
        found.append(where)
    return found


def shares(values: Floats, low: float, high: float) -> Floats:
    """Where ``values`` lie on a logarithmic axis from ``low`` (0) to ``high`` (1)."""
    return np.asarray(np.log(values / low) / np.log(high / low))


def _boxes(x: float, y: float, width: float, height: float) -> tuple[Box, ...]:
    gap, w, h = 1.2 * DOT, width / 2, height / 2
    return (
        (x + gap, y - h, x + gap + width, y + h),
        (x - gap - width, y - h, x - gap, y + h),
        (x - w, y + gap, x + w, y + gap + height),
        (x - w, y - gap - height, x + w, y - gap),
    )


def _inside(box: Box) -> bool:
    return min(box[:2]) >= 0 and max(box[2:]) <= 1


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

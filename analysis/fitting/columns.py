"""What public routines are given: columns of numbers of any kind, checked once and made arrays."""

from __future__ import annotations

from collections.abc import Sized

import numpy as np
import numpy.typing as npt

from trainer.errors import UserError


def columns(
    *, blank: tuple[str, ...] = (), zero: tuple[str, ...] = (), **given: npt.ArrayLike
) -> list[npt.NDArray[np.float64]]:
    """Columns of one length as float arrays, in the order given; of a pandas Series the values, by position.

    Parameters
    ----------
    given
        By name: lists, arrays or Series of numbers, each (n,).
    blank
        Names of those that may hold NaN.
    zero
        Names of those that may hold 0.

    Raises
    ------
    UserError
        If one is not flat, of another length or no numbers, or a number is not finite and positive.
    """
    arrays = {name: _flat(name, column) for name, column in given.items()}
    first = next(iter(arrays))
    for name, array in arrays.items():
        one_length(name, array, first, arrays[first])
        lowest, highest = array.min(initial=np.inf), array.max(initial=-np.inf)  # NaN where there is one
        least_good = lowest >= 0 if name in zero else lowest > 0
        if len(array) and not (least_good and highest < np.inf):
            _refuse(name, array, blank=name in blank, zero=name in zero)
    return list(arrays.values())


def one_length(name: str, column: Sized, other: str, than: Sized) -> None:
    """Refuse two columns of different lengths.

    Raises
    ------
    UserError
        With both lengths.
    """
    if len(column) != len(than):
        raise UserError(
            f"{name} has {len(column)} value(s) and {other} has {len(than)}; columns must be of one length, with one "
            "value for each row."
        )


def _flat(name: str, column: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        array = np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is no column of numbers ({error}); give a list, an array or a Series.") from None
    if array.ndim != 1:
        raise UserError(f"{name} has the shape {array.shape}; give a flat column with one number per point.")
    return array


def _refuse(name: str, array: npt.NDArray[np.float64], *, blank: bool, zero: bool) -> None:
    good = np.isfinite(array) & ((array >= 0) if zero else (array > 0))
    bad = array[~(good | np.isnan(array))] if blank else array[~good]
    if len(bad):
        what = "0 or more" if zero else "positive"
        raise UserError(f"{name} holds {bad[0]:g}; its numbers must be finite and {what}, so leave such rows out.")

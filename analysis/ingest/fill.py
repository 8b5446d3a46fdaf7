"""Numbers that are missing, taken from C = 6 N D: only when told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.config import Fill, chosen
from analysis.ingest.tables import UNREADABLE, Tables

FLOPS = ("flops_6nd", "flops_logged", "flops_matmul", "flops_chinchilla")
"""Where C is looked for, first one first."""
SIZES = ("params_total", "params_non_embedding")


def fill_missing(tables: Tables, fill: Fill | str) -> Tables:
    """Points with N, or D, of C = 6 N D where it is missing (Kaplan et al. 2020), and a note that counts them.

    C is each row's first of :data:`FLOPS`; N the first of :data:`SIZES` for D, and for a missing N the one that most
    rows have.

    Raises
    ------
    UserError
        If ``fill`` is not a :class:`~analysis.config.Fill` or its name.
    """
    points, notes = filled(tables.points, fill)
    return replace(tables, points=points, notes=(*tables.notes, *notes)) if notes else tables


def filled(table: pd.DataFrame, fill: Fill | str) -> tuple[pd.DataFrame, list[str]]:
    """The same for a table that may lack columns; what was filled, in a sentence."""
    fill = chosen(Fill, fill, "fit.fill")
    if fill is Fill.none:
        return table, []
    c = _first(table, FLOPS)
    if fill is Fill.tokens:
        name, value = "tokens", c / (6 * _first(table, SIZES))
    else:
        name = max(SIZES, key=lambda size: int(_known(table, size).notna().sum()))
        value = c / (6 * _known(table, "tokens"))
    others = (*SIZES, name) if fill is Fill.params else (name,)
    missing = _first(table, others).isna() & np.isfinite(value)
    if "verdict" in table:  # text is not nothing
        missing &= ~table["verdict"].map(str).str.endswith(UNREADABLE)
    if not missing.any():
        return table if name in table else table.assign(**{name: np.nan}), []
    column = (table[name] if name in table else pd.Series(np.nan, index=table.index)).mask(missing, value)
    counted = {"flops_6nd": table["flops_6nd"].mask(missing, c)} if "flops_6nd" in table else {}
    note = (
        f"fit.fill={fill.value}: {name} of {int(missing.sum())} of {len(table)} rows was missing "
        "and is taken from C = 6 N D."
    )
    return table.assign(**{name: column}, **counted), [note]


def _known(table: pd.DataFrame, name: str) -> pd.Series:
    """A column where it is a positive number, else NaN."""
    if name not in table:
        return pd.Series(np.nan, index=table.index)
    return table[name].where(np.isfinite(table[name]) & (table[name] > 0))


def _first(table: pd.DataFrame, names: tuple[str, ...]) -> pd.Series:
    """Each row's first known number."""
    found = _known(table, names[0])
    for name in names[1:]:
        found = found.fillna(_known(table, name))
    return found

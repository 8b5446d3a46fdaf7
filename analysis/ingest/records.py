"""A run that keeps the run folder's contract, as rows of the two tables: wherever its config, final records and metrics
rows were read, they become the same numbers here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.fitting.values import Floats
from analysis.ingest.tables import AXIS, CURVE_COLUMNS, POINT_COLUMNS, Exclusion, Tables, complete_points, numbers
from trainer.recipe import Horizon
from trainer.runfolder import RunConfig, final_record

MEASURES = tuple(name for name in CURVE_COLUMNS if name != "run_id")
LOSSES = [MEASURES.index(name) for name in ("train_loss", "val_loss")]
NO_CURVE = np.empty((len(MEASURES), 0))


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRows:
    """One run's part of the tables."""

    run_id: str
    points: Sequence[Mapping[str, Any]] = ()
    """Rows of the points schema."""
    curves: Mapping[str, Floats] = field(default_factory=dict)
    """(len(MEASURES), rows) by the ``run_id`` of the points: what led to each."""
    excluded: Sequence[Exclusion] = ()


def run_points(
    config: RunConfig, records: Mapping[str, Mapping[str, Any]], validation: str | None = None
) -> list[dict[str, Any]]:
    """A run's final records, by point id, as rows of the points schema.

    Parameters
    ----------
    validation
        The validation set whose loss counts; None for the corpus's first.
    """
    return [_point(_completed(config, record), validation) for record in records.values()]


def run_curves(
    config: RunConfig,
    rows: Sequence[Mapping[str, Any]],
    records: Mapping[str, Mapping[str, Any]],
    val_loss: str = "val_loss",
) -> dict[str, Floats]:
    """What led to each recorded point of a run, by point: the trunk's rows up to the cooldown, and the cooldown's.

    ``val_loss`` is the key of the validation loss.
    """
    return {point: _curve(config, config.recipe.horizon(point), rows, val_loss) for point in records}


def _curve(config: RunConfig, horizon: Horizon, rows: Sequence[Mapping[str, Any]], val_loss: str) -> Floats:
    """Valid metrics rows as (len(MEASURES), rows), those without any loss left out; NaN for what is not known.

    ``progress`` is counted from the tokens and those of the horizon.
    """
    if config.recipe.branches:
        last = horizon.steps == config.recipe.steps
        fork = horizon.steps if last else horizon.steps - horizon.cooldown_steps
        on_trunk = [row for row in rows if "branch" not in row and row["step"] < fork]
        rows = on_trunk + [row for row in rows if row.get("branch") == horizon.tokens]
    if not rows:
        return NO_CURVE
    keys = [val_loss if name == "val_loss" else name for name in MEASURES]
    curve = np.array([numbers([row.get(key) for row in rows]) for key in keys])
    curve[MEASURES.index("progress")] = curve[MEASURES.index("tokens")] / horizon.tokens
    curve[~np.isfinite(curve)] = np.nan  # W&B keeps infinities, the run folder does not
    return curve[:, ~np.isnan(curve[LOSSES]).all(axis=0)]


def missing_points(config: RunConfig, records: Mapping[str, Any]) -> list[Exclusion]:
    """The points of a run that have no final record."""
    return [
        Exclusion(row=point, reason="unfinished: no final record")
        for point in config.recipe.point_ids
        if point not in records
    ]


def tables_of(runs: Iterable[RunRows], source: str) -> Tables:
    """Many runs as one source."""
    points: list[Mapping[str, Any]] = []
    excluded: list[Exclusion] = []
    names, curves = [], []
    for run in runs:
        points += run.points
        excluded += run.excluded
        for name, curve in run.curves.items():
            if curve.size:
                names.append(name)
                curves.append(curve)
    codes, ids = pd.factorize(np.array(names, dtype=object))
    lengths = [curve.shape[1] for curve in curves]
    values = np.concatenate(curves or [NO_CURVE], axis=1)
    run_id = pd.Categorical.from_codes(np.repeat(codes, lengths), categories=pd.Index(ids, dtype=object))
    return Tables(
        source=source,
        points=complete_points(pd.DataFrame(points) if points else pd.DataFrame({"run_id": []})),
        curves=pd.DataFrame({"run_id": run_id} | dict(zip(MEASURES, values, strict=True))),
        excluded=tuple(excluded),
    )


def _completed(config: RunConfig, record: Mapping[str, Any]) -> dict[str, Any]:
    """A final record with what follows from the config, which other people's trainers need not write."""
    point, tokens, verdict = record["point_id"], record["tokens"], record["verdict"]
    return final_record(config, point_id=point, tokens=tokens, loss=record.get("loss"), verdict=verdict) | dict(record)


def validation_sets(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What a final record says of each of its corpus's validation sets, the one of ``loss`` first."""
    sets = record.get("validation_sets")
    return {str(name): each for name, each in sets.items() if isinstance(each, dict)} if isinstance(sets, dict) else {}


def _point(record: Mapping[str, Any], validation: str | None) -> dict[str, Any]:
    """A final record as a row: axes and the losses of several validation sets become columns, flags one text.

    A run with several points becomes one per point, with its curve; what they share is their cluster.
    """
    row = {name: record[name] for name in POINT_COLUMNS if name in record} | {"run_id": record["point_id"]}
    sets = validation_sets(record)
    if len(sets) > 1:
        row |= {f"val_loss_{name}": measured.get("loss") for name, measured in sorted(sets.items())}
        row |= {f"bits_per_byte_{name}": measured.get("bits_per_byte") for name, measured in sorted(sets.items())}
    if validation is not None:
        row |= {name: sets.get(validation, {}).get(name) for name in ("loss", "bits_per_byte")}
    row["flags"] = ";".join(map(str, record.get("flags") or ()))
    axes = record.get("axes")
    return row | {f"{AXIS}{key}": _scalar(value) for key, value in (axes if isinstance(axes, dict) else {}).items()}


def _scalar(value: Any) -> Any:
    """A list or a mapping as text, by which rows can be grouped."""
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)

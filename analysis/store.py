"""The folder that ``fit`` leaves: fit.json, its tables, and the bootstrap's replicates for intervals at any budget."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.fitting.bootstrap import Scatter
from analysis.fitting.values import Floats
from analysis.result import FIT_SCHEMA, Approach, FitResult
from trainer.errors import UserError
from trainer.files import write_json, write_whole
from trainer.recipe import check_schema

FIT, POINTS, EXPONENTS, EXCLUSIONS, REPLICATES = (
    "fit.json",
    "points.csv",
    "exponents.csv",
    "exclusions.csv",
    "replicates.npz",
)


def write_fit(result: FitResult, out: Path) -> list[Path]:
    """Write a fit's folder; fit.json comes last, so that it stands only beside its tables.

    Returns
    -------
    The files written.

    Raises
    ------
    MachineFault
        If the disk is full or read-only.
    """
    exclusions = pd.DataFrame([(e.row, e.reason) for e in result.excluded], columns=["row", "reason"])
    for name, table in ((POINTS, result.points), (EXPONENTS, exponents_table(result)), (EXCLUSIONS, exclusions)):
        write_whole(out / name, table.to_csv(index=False))
    packed = io.BytesIO()
    np.savez_compressed(packed, **_replicates(result))  # type: ignore[arg-type]
    write_whole(out / REPLICATES, packed.getvalue())
    write_json(out / FIT, result.to_dict())
    return [out / name for name in (FIT, POINTS, EXPONENTS, EXCLUSIONS, REPLICATES)]


def exponents_table(result: FitResult) -> pd.DataFrame:
    """One row per pair of conventions and approach: a and b with their intervals, or why it was refused."""
    rows = []
    for fit in result.by_convention:
        for name, approach in fit.approaches.items():
            row: dict[str, Any] = {"params": fit.conventions.params, "flops": fit.conventions.flops, "approach": name}
            if isinstance(approach, Approach) and approach.quotable:
                for letter in ("a", "b"):
                    numbers = getattr(approach, letter).to_dict()
                    row |= {
                        letter: numbers["value"],
                        f"{letter}_low": numbers["low"],
                        f"{letter}_high": numbers["high"],
                    }
                row["refused"] = None
            else:
                row["refused"] = approach.remark if isinstance(approach, Approach) else approach.reason
            rows.append(row)
    columns = ["params", "flops", "approach", "a", "a_low", "a_high", "b", "b_low", "b_high", "refused"]
    return pd.DataFrame(rows).reindex(columns=columns)


@dataclass(frozen=True, kw_only=True)
class StoredFit:
    """A fit as its folder holds it: fit.json, and the replicates by convention and approach."""

    name: str
    """What messages call it: ``path=...``, or its source where it was never written."""
    raw: Mapping[str, Any]
    replicates: Mapping[str, Floats]
    """``<params convention>/<flops convention>/<approach>`` -> (replicates, 5 or 6), as ``Replicates.values``; with
    ``/residuals/<n_opt, d_opt or loss_opt>`` and ``/freedom/<...>``, the two parts of its ``Scatter``."""

    @classmethod
    def of(cls, fit: FitResult | StoredFit | Path | str) -> StoredFit:
        """A fit in memory as its folder would hold it; one on disk, by its path, as :func:`read_fit` reads it.

        Raises
        ------
        UserError
            If a path leads to no fit.
        """
        if isinstance(fit, FitResult):
            return cls(name=f"the fit of {fit.source}", raw=fit.to_dict(), replicates=_replicates(fit))
        return fit if isinstance(fit, StoredFit) else read_fit(fit)

    def scatter(self, approach: str) -> dict[str, Scatter]:
        """How measurements scatter about an approach's law, under the primary conventions."""
        prefix = f"{self.key(approach)}/residuals/"
        return {
            name.removeprefix(prefix): Scatter(values, float(self.replicates[name.replace("/residuals/", "/freedom/")]))
            for name, values in self.replicates.items()
            if name.startswith(prefix)
        }

    def key(self, approach: str) -> str:
        """Where an approach's replicates stand, under the primary conventions."""
        return f"{self.raw['conventions']['params']}/{self.raw['conventions']['flops']}/{approach}"


def read_fit(path: Path | str) -> StoredFit:
    """Read a fit's folder, or its fit.json.

    Raises
    ------
    UserError
        If there is none, it is damaged, or a newer isoflop wrote it.
    """
    path = Path(path)
    file = path / FIT if path.is_dir() else path
    try:
        raw = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"path={path}: there is no {FIT}; run `isoflop fit` first, or name its folder.") from None
    except (OSError, ValueError):
        raise UserError(f"path={path} is not a readable {FIT}; run `isoflop fit` again, or name its folder.") from None
    _check(raw, file)
    beside = file.parent / REPLICATES
    replicates: dict[str, Floats] = {}
    if beside.is_file():
        try:
            with np.load(beside, allow_pickle=False) as arrays:
                replicates = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{beside} is damaged ({error}); run `isoflop fit` again.") from None
    return StoredFit(name=f"path={path}", raw=raw, replicates=replicates)


def _check(raw: Any, file: Path) -> None:
    version = raw.get("schema") if isinstance(raw, dict) else None
    check_schema(version, str(file), known=FIT_SCHEMA, remedy="fit again")
    missing = [name for name in ("conventions", "cost", "interval", "approaches", "by_convention") if name not in raw]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}; run `isoflop fit` again.")


def _replicates(result: FitResult) -> dict[str, Floats]:
    """As ``StoredFit.replicates``."""
    arrays: dict[str, Floats] = {}
    for fit in result.by_convention:
        for name, approach in fit.approaches.items():
            if not isinstance(approach, Approach):
                continue
            key = f"{fit.conventions.params}/{fit.conventions.flops}/{name}"
            arrays[key] = approach.replicates.values
            if fit is result.primary:
                for what, scatter in approach.scatter.items():
                    arrays[f"{key}/residuals/{what}"] = scatter.residuals
                    arrays[f"{key}/freedom/{what}"] = np.array(scatter.freedom)
    return arrays

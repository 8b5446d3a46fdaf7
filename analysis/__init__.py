"""What runs say: ingest, clean, three approaches with intervals, laws. The names below take arrays and return results.

They are imported when first used, so that ``import analysis`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.bootstrap import resample
    from analysis.config import FitConfig
    from analysis.csvfile import read_csv
    from analysis.envelope import Curves, fit_envelope
    from analysis.fit import fit_tables
    from analysis.isoflop import fit_isoflop, group_budgets
    from analysis.laws import Law, find_law
    from analysis.parametric import fit_parametric
    from analysis.predict import predict_fit, predict_law
    from analysis.runs import read_runs
    from analysis.store import read_fit, write_fit
    from analysis.tables import Tables

_HOMES = {
    "Curves": "envelope",
    "FitConfig": "config",
    "Law": "laws",
    "Tables": "tables",
    "find_law": "laws",
    "fit_envelope": "envelope",
    "fit_isoflop": "isoflop",
    "fit_parametric": "parametric",
    "fit_tables": "fit",
    "group_budgets": "isoflop",
    "predict_fit": "predict",
    "predict_law": "predict",
    "read_csv": "csvfile",
    "read_fit": "store",
    "read_runs": "runs",
    "resample": "bootstrap",
    "write_fit": "store",
}
__all__ = [
    "Curves",
    "FitConfig",
    "Law",
    "Tables",
    "find_law",
    "fit_envelope",
    "fit_isoflop",
    "fit_parametric",
    "fit_tables",
    "group_budgets",
    "predict_fit",
    "predict_law",
    "read_csv",
    "read_fit",
    "read_runs",
    "resample",
    "write_fit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"analysis.{_HOMES[name]}"), name)

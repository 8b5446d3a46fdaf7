"""What runs say: ingest, clean, three approaches with intervals, laws. The names below take arrays and return results.

They are imported when first used, so that ``import analysis`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.config import FitConfig, Form, Objective, Resample, Valley
    from analysis.fit import fit_tables
    from analysis.fitting.bootstrap import resample
    from analysis.fitting.curves import Curves
    from analysis.fitting.envelope import fit_envelope
    from analysis.fitting.isoflop import fit_isoflop, group_budgets
    from analysis.fitting.parametric import fit_parametric
    from analysis.fitting.profile import profile
    from analysis.fitting.repeated import fit_repeated
    from analysis.ingest.files import read_file
    from analysis.ingest.frames import read_frame
    from analysis.ingest.runs import read_runs
    from analysis.ingest.tables import Tables
    from analysis.ingest.wandb_api import read_project
    from analysis.ingest.wandb_files import read_offline
    from analysis.laws.constrained import optimum_constrained
    from analysis.laws.forms import FrontierLaw, SurfaceLaw
    from analysis.laws.inference import optimum_with_inference
    from analysis.laws.law import find_law, known_laws
    from analysis.laws.models import distance_from_optimal, published_models
    from analysis.laws.offoptimum import at_ratio, optimum_for_loss, overspend
    from analysis.predict import predict_fit, predict_law
    from analysis.report.document import write_report
    from analysis.report.figures import write_figures
    from analysis.store import read_fit, write_fit

_HOMES = {
    "Curves": "fitting.curves",
    "FitConfig": "config",
    "Form": "config",
    "FrontierLaw": "laws.forms",
    "Objective": "config",
    "Resample": "config",
    "SurfaceLaw": "laws.forms",
    "Tables": "ingest.tables",
    "Valley": "config",
    "at_ratio": "laws.offoptimum",
    "distance_from_optimal": "laws.models",
    "find_law": "laws.law",
    "fit_envelope": "fitting.envelope",
    "fit_isoflop": "fitting.isoflop",
    "fit_parametric": "fitting.parametric",
    "fit_repeated": "fitting.repeated",
    "fit_tables": "fit",
    "group_budgets": "fitting.isoflop",
    "known_laws": "laws.law",
    "optimum_constrained": "laws.constrained",
    "optimum_for_loss": "laws.offoptimum",
    "optimum_with_inference": "laws.inference",
    "overspend": "laws.offoptimum",
    "predict_fit": "predict",
    "predict_law": "predict",
    "profile": "fitting.profile",
    "published_models": "laws.models",
    "read_file": "ingest.files",
    "read_fit": "store",
    "read_frame": "ingest.frames",
    "read_offline": "ingest.wandb_files",
    "read_project": "ingest.wandb_api",
    "read_runs": "ingest.runs",
    "resample": "fitting.bootstrap",
    "write_figures": "report.figures",
    "write_fit": "store",
    "write_report": "report.document",
}
__all__ = [
    "Curves",
    "FitConfig",
    "Form",
    "FrontierLaw",
    "Objective",
    "Resample",
    "SurfaceLaw",
    "Tables",
    "Valley",
    "at_ratio",
    "distance_from_optimal",
    "find_law",
    "fit_envelope",
    "fit_isoflop",
    "fit_parametric",
    "fit_repeated",
    "fit_tables",
    "group_budgets",
    "known_laws",
    "optimum_constrained",
    "optimum_for_loss",
    "optimum_with_inference",
    "overspend",
    "predict_fit",
    "predict_law",
    "profile",
    "published_models",
    "read_file",
    "read_fit",
    "read_frame",
    "read_offline",
    "read_project",
    "read_runs",
    "resample",
    "write_figures",
    "write_fit",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"analysis.{_HOMES[name]}"), name)

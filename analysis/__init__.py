"""What runs say: ingest, clean, three approaches with intervals, laws. The names below take arrays and return results.

They are imported when first used, so that ``import analysis`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.config import Fill, FitConfig, Form, Objective, Resample, Valley
    from analysis.fit import fit_tables
    from analysis.fitting.bootstrap import Resamples, resample
    from analysis.fitting.curves import Curves
    from analysis.fitting.effective import loss_repeated
    from analysis.fitting.envelope import fit_envelope, refit_envelope
    from analysis.fitting.isoflop import fit_isoflop, group_budgets, refit_isoflop, window_sweep
    from analysis.fitting.optimum import (
        exponents,
        fit_cost,
        optimum,
        optimum_for_loss,
        optimum_for_params,
        optimum_for_tokens,
    )
    from analysis.fitting.parametric import fit_parametric, refit_parametric
    from analysis.fitting.profile import profile
    from analysis.fitting.repeated import fit_repeated
    from analysis.fitting.values import (
        BudgetValley,
        Certificate,
        Cost,
        EnvelopeFit,
        Estimate,
        IsoflopFit,
        ParametricFit,
        PowerLaw,
        PowerLaws,
        Profile,
        Refused,
        RepeatedFit,
        Rows,
        Window,
    )
    from analysis.ingest.files import read_file
    from analysis.ingest.frames import read_frame
    from analysis.ingest.runs import read_runs
    from analysis.ingest.tables import Exclusion, Tables
    from analysis.ingest.wandb_api import read_project
    from analysis.ingest.wandb_files import read_offline
    from analysis.laws.constrained import optimum_constrained
    from analysis.laws.forms import FrontierLaw, Law, Optimal, SurfaceLaw
    from analysis.laws.inference import optimum_with_inference
    from analysis.laws.law import find_law, known_laws
    from analysis.laws.models import Distance, PublishedModel, distance_from_optimal, published_models
    from analysis.laws.offoptimum import at_ratio, overspend
    from analysis.predict.by_fit import law_of_fit, predict_fit
    from analysis.predict.by_law import predict_law, predict_models
    from analysis.predict.prediction import Prediction
    from analysis.predict.question import Question
    from analysis.report.document import write_report
    from analysis.report.figures import write_figures
    from analysis.result import ConventionFit, Conventions, FitResult
    from analysis.store import StoredFit, read_fit, write_fit
    from trainer.errors import UserError
    from trainer.shape import FlopCount, ParamCount

_HOMES = {
    "BudgetValley": "analysis.fitting.values",
    "Certificate": "analysis.fitting.values",
    "ConventionFit": "analysis.result",
    "Conventions": "analysis.result",
    "Cost": "analysis.fitting.values",
    "Curves": "analysis.fitting.curves",
    "Distance": "analysis.laws.models",
    "EnvelopeFit": "analysis.fitting.values",
    "Estimate": "analysis.fitting.values",
    "Exclusion": "analysis.ingest.tables",
    "Fill": "analysis.config",
    "FitConfig": "analysis.config",
    "FitResult": "analysis.result",
    "FlopCount": "trainer.shape",
    "Form": "analysis.config",
    "FrontierLaw": "analysis.laws.forms",
    "IsoflopFit": "analysis.fitting.values",
    "Law": "analysis.laws.forms",
    "Objective": "analysis.config",
    "Optimal": "analysis.laws.forms",
    "ParamCount": "trainer.shape",
    "ParametricFit": "analysis.fitting.values",
    "PowerLaw": "analysis.fitting.values",
    "PowerLaws": "analysis.fitting.values",
    "Prediction": "analysis.predict.prediction",
    "Profile": "analysis.fitting.values",
    "PublishedModel": "analysis.laws.models",
    "Question": "analysis.predict.question",
    "Refused": "analysis.fitting.values",
    "RepeatedFit": "analysis.fitting.values",
    "Resample": "analysis.config",
    "Resamples": "analysis.fitting.bootstrap",
    "Rows": "analysis.fitting.values",
    "StoredFit": "analysis.store",
    "SurfaceLaw": "analysis.laws.forms",
    "Tables": "analysis.ingest.tables",
    "UserError": "trainer.errors",
    "Valley": "analysis.config",
    "Window": "analysis.fitting.values",
    "at_ratio": "analysis.laws.offoptimum",
    "distance_from_optimal": "analysis.laws.models",
    "exponents": "analysis.fitting.optimum",
    "find_law": "analysis.laws.law",
    "fit_cost": "analysis.fitting.optimum",
    "fit_envelope": "analysis.fitting.envelope",
    "fit_isoflop": "analysis.fitting.isoflop",
    "fit_parametric": "analysis.fitting.parametric",
    "fit_repeated": "analysis.fitting.repeated",
    "fit_tables": "analysis.fit",
    "group_budgets": "analysis.fitting.isoflop",
    "known_laws": "analysis.laws.law",
    "law_of_fit": "analysis.predict.by_fit",
    "loss_repeated": "analysis.fitting.effective",
    "optimum": "analysis.fitting.optimum",
    "optimum_constrained": "analysis.laws.constrained",
    "optimum_for_loss": "analysis.fitting.optimum",
    "optimum_for_params": "analysis.fitting.optimum",
    "optimum_for_tokens": "analysis.fitting.optimum",
    "optimum_with_inference": "analysis.laws.inference",
    "overspend": "analysis.laws.offoptimum",
    "predict_fit": "analysis.predict.by_fit",
    "predict_law": "analysis.predict.by_law",
    "predict_models": "analysis.predict.by_law",
    "profile": "analysis.fitting.profile",
    "published_models": "analysis.laws.models",
    "read_file": "analysis.ingest.files",
    "read_fit": "analysis.store",
    "read_frame": "analysis.ingest.frames",
    "read_offline": "analysis.ingest.wandb_files",
    "read_project": "analysis.ingest.wandb_api",
    "read_runs": "analysis.ingest.runs",
    "refit_envelope": "analysis.fitting.envelope",
    "refit_isoflop": "analysis.fitting.isoflop",
    "refit_parametric": "analysis.fitting.parametric",
    "resample": "analysis.fitting.bootstrap",
    "window_sweep": "analysis.fitting.isoflop",
    "write_figures": "analysis.report.figures",
    "write_fit": "analysis.store",
    "write_report": "analysis.report.document",
}
__all__ = [
    "BudgetValley",
    "Certificate",
    "ConventionFit",
    "Conventions",
    "Cost",
    "Curves",
    "Distance",
    "EnvelopeFit",
    "Estimate",
    "Exclusion",
    "Fill",
    "FitConfig",
    "FitResult",
    "FlopCount",
    "Form",
    "FrontierLaw",
    "IsoflopFit",
    "Law",
    "Objective",
    "Optimal",
    "ParamCount",
    "ParametricFit",
    "PowerLaw",
    "PowerLaws",
    "Prediction",
    "Profile",
    "PublishedModel",
    "Question",
    "Refused",
    "RepeatedFit",
    "Resample",
    "Resamples",
    "Rows",
    "StoredFit",
    "SurfaceLaw",
    "Tables",
    "UserError",
    "Valley",
    "Window",
    "at_ratio",
    "distance_from_optimal",
    "exponents",
    "find_law",
    "fit_cost",
    "fit_envelope",
    "fit_isoflop",
    "fit_parametric",
    "fit_repeated",
    "fit_tables",
    "group_budgets",
    "known_laws",
    "law_of_fit",
    "loss_repeated",
    "optimum",
    "optimum_constrained",
    "optimum_for_loss",
    "optimum_for_params",
    "optimum_for_tokens",
    "optimum_with_inference",
    "overspend",
    "predict_fit",
    "predict_law",
    "predict_models",
    "profile",
    "published_models",
    "read_file",
    "read_fit",
    "read_frame",
    "read_offline",
    "read_project",
    "read_runs",
    "refit_envelope",
    "refit_isoflop",
    "refit_parametric",
    "resample",
    "window_sweep",
    "write_figures",
    "write_fit",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

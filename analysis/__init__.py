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

_NAMES = {
    "analysis.config": "Fill FitConfig Form Objective Resample Valley",
    "analysis.fit": "fit_tables",
    "analysis.fitting.bootstrap": "Resamples resample",
    "analysis.fitting.curves": "Curves",
    "analysis.fitting.effective": "loss_repeated",
    "analysis.fitting.envelope": "fit_envelope refit_envelope",
    "analysis.fitting.isoflop": "fit_isoflop group_budgets refit_isoflop window_sweep",
    "analysis.fitting.optimum": "exponents fit_cost optimum optimum_for_loss optimum_for_params optimum_for_tokens",
    "analysis.fitting.parametric": "fit_parametric refit_parametric",
    "analysis.fitting.profile": "profile",
    "analysis.fitting.repeated": "fit_repeated",
    "analysis.fitting.values": (
        "BudgetValley Certificate Cost EnvelopeFit Estimate IsoflopFit ParametricFit PowerLaw PowerLaws "
        "Profile Refused RepeatedFit Rows Window"
    ),
    "analysis.ingest.files": "read_file",
    "analysis.ingest.frames": "read_frame",
    "analysis.ingest.runs": "read_runs",
    "analysis.ingest.tables": "Exclusion Tables",
    "analysis.ingest.wandb_api": "read_project",
    "analysis.ingest.wandb_files": "read_offline",
    "analysis.laws.constrained": "optimum_constrained",
    "analysis.laws.forms": "FrontierLaw Law Optimal SurfaceLaw",
    "analysis.laws.inference": "optimum_with_inference",
    "analysis.laws.law": "find_law known_laws",
    "analysis.laws.models": "Distance PublishedModel distance_from_optimal published_models",
    "analysis.laws.offoptimum": "at_ratio overspend",
    "analysis.predict.by_fit": "law_of_fit predict_fit",
    "analysis.predict.by_law": "predict_law predict_models",
    "analysis.predict.prediction": "Prediction",
    "analysis.predict.question": "Question",
    "analysis.report.document": "write_report",
    "analysis.report.figures": "write_figures",
    "analysis.result": "ConventionFit Conventions FitResult",
    "analysis.store": "StoredFit read_fit write_fit",
    "trainer.errors": "UserError",
    "trainer.shape": "FlopCount ParamCount",
}
"""What type checkers read above, once more for those who import."""
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

"""``<root>/<sweep>/plan.html``: the plan and its forecast as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.config import Quantity
from analysis.fitting.optimum import fit_cost
from analysis.fitting.values import Floats, Refused
from analysis.planning.compare import Curve, compared
from analysis.planning.information import Target, error_factor, standard_errors
from analysis.report.plan import PlanPicture, write_plan_report
from analysis.text import SHORT_TITLES, bias_text, count_text, error_text, estimate_text, flops_text, within_text
from sweeps.config import Config
from sweeps.paths import SweepFolder
from sweeps.planning.aims import aims_of, recounted
from sweeps.planning.forecast import Outlook, columns
from sweeps.planning.points import Plan, PlannedPoint
from sweeps.terminal import progress_line, seconds
from trainer.runfolder import DONE

FEW_LAWS = 4


def write_pictures(config: Config, plan: Plan, outlook: Outlook, folder: SweepFolder) -> Path:
    """Write the page; returns its path."""
    points = [point for point in plan.points if point.run.axes == plan.points[0].run.axes]
    params, tokens, flops = columns(points, outlook.prior.params)
    cost, told = fit_cost(params, tokens, flops), outlook.told
    target = Target(quantity=Quantity.n_opt, flops=max(told.targets))
    if plan.design is not None:
        shapes = [point.run.recipe.model for point in points]
        target = recounted(aims_of(config.sweep.target), shapes, config.fit.params, outlook.prior.params)[0]
    laws, noise = outlook.prior.laws, outlook.noise.value
    noise *= error_factor(config.fit, noise)  # errors of the fit that there will be are in proportion
    few = laws[np.unique(np.linspace(0, len(laws) - 1, FEW_LAWS).astype(int))]
    own = float(standard_errors(params, tokens, few, (target,), noise, cost, form=config.fit.form)[0])
    curves = [Curve("this plan", np.array([sum(point.flops_spent for point in points)]), np.array([own]))]
    with progress_line() as report:
        curves += list(compared(laws, target, noise, cost, _reach(config, flops), report, form=config.fit.form))
    picture = PlanPicture(
        params=params,
        tokens=tokens,
        flops=flops,
        role=_roles(plan, points),
        done=np.array([_is_done(folder, point) for point in points], dtype=np.float64),
        laws=laws,
        cost=cost,
        counts=outlook.prior.params.value.replace("_", "-"),
    )
    totals = plan.totals
    where = f" at {flops_text(target.flops)} FLOPs" if np.isfinite(target.flops) else ""
    path = folder.path / "plan.html"
    write_plan_report(
        path,
        title=f"Plan of {plan.sweep}",
        lead=f"{totals['points']} points, {flops_text(totals['flops_matmul'])} FLOPs, "
        f"{totals['device_hours']:.3g} device-hours; {target.quantity.value}{where} known to {within_text(own)}.",
        picture=picture,
        curves=curves,
        target=f"{target.quantity.value}{where} (relative)" if target.quantity is not Quantity.exponent else "a",
        tables=[_expected(outlook), _budgets(outlook)],
        remarks=_remarks(outlook),
    )
    return path


def _reach(config: Config, flops: Floats) -> tuple[float, float]:
    """The budgets that a design may choose from, where they are listed; else those of the plan."""
    listed = config.sweep.budgets or flops.tolist()
    return min(listed), max(listed)


def _roles(plan: Plan, points: Sequence[PlannedPoint]) -> list[str]:
    if plan.design is None:
        return ["planned"] * len(points)
    known = {
        (at["layers"], at["d_model"], round(np.log(at["tokens"]), 2)): at["role"]
        for batch in plan.design["batches"]
        for at in batch["points"]
    }
    places = [(at.run.recipe.model.layers, at.run.recipe.model.d_model, at.horizon.tokens) for at in points]
    return [known.get((layers, width, round(np.log(tokens), 2)), "optimal") for layers, width, tokens in places]


def _is_done(folder: SweepFolder, point: PlannedPoint) -> bool:
    record = folder.run(point.run.run_id).points().get(point.point_id)
    return record is not None and record["verdict"] == DONE


def _expected(outlook: Outlook) -> tuple[str, Sequence[str], Sequence[Sequence[str]], str]:
    rows = []
    for name, found in outlook.told.approaches.items():
        if isinstance(found, Refused):
            continue
        for at, *off in zip(found.optima, found.bias.n_opt, found.bias.loss_opt, strict=True):
            sizes = (estimate_text(one, count_text) for one in (at.n_opt, at.d_opt))
            loss = estimate_text(at.loss_opt, "{:.4g}".format) if outlook.prior.level_known else "–"
            start = (SHORT_TITLES[name], estimate_text(found.a), flops_text(at.budget))
            rows.append((*start, *sizes, loss, *map(bias_text, off)))
    head = ("Approach", "a", "C", "N*", "D*", "L*", "N* off by", "L* off by")
    return f"Medians and intervals to expect, {100 * outlook.told.level:g} %", head, rows, "lrrrrrrr"


def _budgets(outlook: Outlook) -> tuple[str, Sequence[str], Sequence[Sequence[str]], str]:
    rows = [
        (
            flops_text(at.budget),
            str(at.points),
            flops_text(at.cost),
            f"{at.share:.1%}",
            seconds(outlook.hours[at.budget] * 3600),
            error_text(at.error),
        )
        for at in outlook.told.budgets
    ]
    head = ("Budget", "points", "FLOPs", "of all", "time", "error of N* without it")
    return "What each budget costs, and adds", head, rows, "rrrrrr"


def _remarks(outlook: Outlook) -> list[str]:
    told, noise = outlook.told, outlook.noise
    bent = ", ".join(f"{name} {within_text(error)}" for name, error in told.bent.items())
    return [
        f"Prior: {outlook.prior.source}. Noise of log loss: {noise.value:.3g} ({noise.source}).",
        f"If the form of the law failed, N* at {flops_text(max(told.targets))} FLOPs would be known to: {bent}; if it "
        f"holds, to {within_text(told.error)}.",
    ]

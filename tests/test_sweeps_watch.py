"""Watching a sweep: the overview, the terminal's view of it, and the fit so far."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Answer
from rich.console import Console
from sweep_runs import Command, smoke

from analysis.config import FitConfig
from sweeps.dispatch.state import PointState, State
from sweeps.paths import SweepFolder
from sweeps.render.live import BLOCKS, live_view, sparkline
from sweeps.watch.overview import CURVE_POINTS, budgets, overview, read_curve
from sweeps.watch.sofar import FitSoFar, Line, SoFar, fit_so_far
from trainer.runfolder import RunFolder


def point(name: str, state: State, budget: float | None = 1e9, **changes: Any) -> PointState:
    values: dict[str, Any] = {"tokens": 1000, "flops": 1e9, "flops_per_token": 1e6, "hours": 1.0}
    values |= {"params_non_embedding": 5000, "progress": 1.0 if state is State.done else 0.0}
    return PointState(point_id=name, run_id=name, budget=budget, state=state, **(values | changes))


STATES = [
    point("a", State.done, loss=2.5, spent_hours=1.5),
    point("b", State.running, loss=3.1, progress=0.5, tokens_per_second=100.0, eta_seconds=5.0, spent_hours=0.5),
    point("c", State.failed, cause="OOM [bold]at[/bold] step 3"),
    point("d", State.done, 4e9, flops=4e9, loss=2.2, params_non_embedding=9000),
    point("e", State.planned, None),
]


def shown(renderable: Any, width: int = 140) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), highlight=False)
    console.print(renderable)
    return console.export_text()


def test_budgets_gather_their_points() -> None:
    first, second, third = budgets(STATES)
    assert (first.flops, first.points, first.done, first.running, first.failed) == (1e9, 3, 1, 1, 1)
    assert first.progress == pytest.approx(0.5) and (first.best_loss, first.best_params) == (2.5, 5000)
    assert (second.flops, second.best_params, second.progress) == (4e9, 9000, 1.0)
    assert third.flops is None and third.best_loss is None


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([math.nan, -1.0], ""), ([2.0], BLOCKS[0]), ([1.0, 2.0], "▁█"), ([4.0, 2.0, 1.0], "█▅▁")],
)
def test_a_sparkline_shows_a_loss(values: list[float], line: str) -> None:
    assert sparkline(values) == line


def test_a_sparkline_of_many_values_fits_and_ends_with_the_last() -> None:
    line = sparkline([10.0] * 500 + [1.0], 24)
    assert len(line) <= 24 and line[-1] == BLOCKS[0] and line[0] == BLOCKS[-1]


@pytest.mark.parametrize("width", [140, 60])
def test_the_view_says_what_goes_on(tmp_path: Path, width: int) -> None:
    fit = SoFar(points=12, lines=[Line(approach="2 isoFLOP", a="0.51 (0.45 to 0.56)", b="0.49", remark="")])
    curves = {"b": [(1.0, 4.0), (2.0, 2.0)]}
    folder = SweepFolder(tmp_path, "night")
    seen = overview(folder, STATES, fit, fitting=True, price_per_hour=2.0, curves=curves)
    text = shown(live_view(seen, width=width, rows=40), width)
    for part in ("night", "1/3", "4e9", "█▁", "3.1000", "of 12 points, another is being made", "0.51 (0.45 to 0.56)"):
        assert part in text
    assert "2 done" in text and "price 4.00 of planned 10.00" in text
    assert width < 100 or "OOM [bold]at[/bold] step 3" in text  # shown as it is, not as markup


def test_before_a_fit_the_view_says_why_there_is_none(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "s")
    for fit, fitting, said in (
        (None, False, "from 4 done points on"),
        (None, True, "being made"),
        (SoFar(points=0, refused="no usable row"), False, "none, no usable row"),
    ):
        assert said in shown(live_view(overview(folder, STATES, fit, fitting=fitting), width=100, rows=30))


def test_the_view_says_how_near_the_target_is(tmp_path: Path) -> None:
    fit = SoFar(points=12, target="n_opt at 1e+14 FLOPs: 1.5e+06, ±9.2% at 95%, wanted ±5.0%; 2e+12 FLOPs")
    text = shown(live_view(overview(SweepFolder(tmp_path, "s"), STATES, fit), width=160, rows=40), 160)
    assert f"target: {fit.target}" in text


def test_a_curve_is_thinned_keeps_its_end_and_leaves_cooldowns_out(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "s")
    run = RunFolder(folder.path / "r")
    run.path.mkdir(parents=True)
    for step in range(200):
        run.append_metrics({"step": step, "tokens": step + 1, "train_loss": 3.0 - step / 100, "attempt": 0})
    run.append_metrics({"step": 150, "update": 200, "tokens": 151, "train_loss": 1.0, "branch": 300, "attempt": 0})
    curve = read_curve(folder, "r")
    assert len(curve) <= CURVE_POINTS and curve[-1] == (200.0, pytest.approx(1.01))


def done(isoflop: Command, folder: SweepFolder) -> Answer:
    answer = isoflop("run", *smoke(folder))
    assert answer.code == 0, answer.err
    return answer


def test_the_fit_so_far_is_made_elsewhere_once_per_set_of_points(isoflop: Command, folder: SweepFolder) -> None:
    done(isoflop, folder)
    points = isoflop("status", *smoke(folder), "format=json").json["points"]
    states = [PointState(**{**raw, "state": State(raw["state"])}) for raw in points]
    fits = FitSoFar(folder, FitConfig(replicates=20))
    try:
        assert fits.of(states[:3]) is None and not fits.busy  # too few
        assert fits.of(states) is None and fits.busy
        deadline = time.monotonic() + 90
        while (found := fits.of(states)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert found.points == len(states) and len(found.lines) == 3
        assert found == fit_so_far(folder, FitConfig(replicates=20))
        assert fits.of(states) is found and not fits.busy
    finally:
        fits.close()


def test_a_fit_so_far_that_cannot_be_is_said(folder: SweepFolder) -> None:
    assert "sweep" in fit_so_far(folder, FitConfig()).refused

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from analysis_surfaces import isoflop_design, tables
from hypothesis import given
from hypothesis import strategies as st

from analysis import views
from analysis.config import FitConfig
from analysis.figures import STYLE, _drawings, write_figures
from analysis.fit import fit_tables
from analysis.fits import Refused
from analysis.laws import find_law
from analysis.result import Envelope, FitResult, Isoflop, Parametric
from analysis.tables import Tables
from analysis.text import count_text, estimate_text, flops_text

ALL = ["frontier", "envelope", "isoflop", "parametric"]


@pytest.fixture(scope="module")
def sweep() -> Tables:
    """Four budgets of nine sizes; the largest lacks the five smaller ones, so that its minimum lies outside."""
    design = isoflop_design(np.geomspace(1e18, 1e21, 4), sizes=9, noise=0.002)
    keep = np.r_[np.arange(27), 32:36]
    return tables(*(column[keep] for column in design))


@pytest.fixture(scope="module")
def fit(sweep: Tables) -> FitResult:
    result = fit_tables(sweep, FitConfig(replicates=100))
    assert isinstance(result.primary.isoflop, Isoflop)
    assert len(result.primary.isoflop.fit.accepted) == 3
    return result


def _without(fit: FitResult, *names: str) -> FitResult:
    refused = {name: Refused(reason=f"{name} does not suit") for name in names}
    return replace(fit, primary=replace(fit.primary, **refused))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (55_000, "55k"),
        (1.2e6, "1.2M"),
        (70e9, "70B"),
        (1.4e12, "1.4T"),
        (999_950, "1M"),
        (512, "512"),
        (3e15, "3,000T"),
    ],
)
def test_counts_are_written_as_people_say_them(value: float, text: str) -> None:
    assert count_text(value) == text
    assert count_text(float("nan")) == "–"


@pytest.mark.parametrize(("value", "text"), [(3e12, "3e12"), (5.76e23, "5.76e23"), (1e18, "1e18"), (9.999e17, "1e18")])
def test_flops_are_written_without_padding(value: float, text: str) -> None:
    assert flops_text(value) == text


@given(st.floats(-3, 27), st.floats(0.001, 12), st.integers(3, 9))
def test_ticks_are_few_round_apart_and_inside(start: float, decades: float, most: int) -> None:
    low, high = 10**start, 10 ** (start + decades)
    ticks = views.log_ticks(low, high, most)
    assert 1 <= len(ticks) <= most
    assert all(low * (1 - 1e-9) <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert all(a < b for a, b in pairwise(ticks))
    if decades > 1:
        assert all(float(f"{tick:.2g}") == pytest.approx(tick) for tick in ticks)
        assert len(ticks) >= 2 or most == 3 or decades < 2


def test_bands_are_percentiles_of_the_replicates(fit: FitResult) -> None:
    law = fit.primary.isoflop
    assert isinstance(law, Isoflop)
    assert law.replicates is not None
    params, tokens = views.frontier(fit.primary, law, np.array([1e19]), 0.9)
    by_hand = np.exp(law.replicates.values[:, 2] + law.replicates.values[:, 3] * np.log(1e19))
    assert tokens.low is not None
    assert tokens.high is not None
    assert tokens.low[0] == pytest.approx(np.quantile(by_hand, 0.05))
    assert tokens.high[0] == pytest.approx(np.quantile(by_hand, 0.95))
    assert params.value[0] == pytest.approx(law.fit.laws.params(1e19))


def test_approach_3_spends_the_whole_budget(fit: FitResult) -> None:
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    flops = views.frontier_flops(fit.primary)
    params, tokens = views.frontier(fit.primary, law, flops, 0.95)
    assert fit.primary.cost.flops_per_token(params.value) * tokens.value == pytest.approx(flops)
    assert flops[-1] == pytest.approx(10 * fit.primary.rows.flops.max())


def test_without_replicates_there_is_no_band(fit: FitResult) -> None:
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    params, _ = views.frontier(fit.primary, replace(law, replicates=None), np.array([1e19, 1e20]), 0.95)
    assert params.low is None
    assert params.high is None
    assert len(params.value) == 2


def test_curves_are_thinned_but_keep_their_ends_and_the_rows_counting(fit: FitResult) -> None:
    rows = fit.primary.rows
    tokens = rows.tokens[0] * np.linspace(0.001, 1, 5000)
    long = pd.DataFrame({"run_id": rows.run_id[0], "tokens": tokens, "val_loss": 3.0, "train_loss": np.nan})
    (curve,) = views.training_curves(fit.primary, long)
    assert 150 <= len(curve.flops) <= views.CURVE_POINTS
    assert curve.flops[[0, -1]] == pytest.approx(rows.flops[0] * np.array([0.001, 1]))
    assert curve.params == rows.params[0]


def test_curves_use_training_losses_when_a_run_was_not_validated(fit: FitResult) -> None:
    rows = fit.primary.rows
    table = pd.DataFrame(
        {
            "run_id": np.repeat(rows.run_id[:2], 3),
            "tokens": np.tile([1e9, 2e9, 3e9], 2),
            "val_loss": [3.0, 2.9, 2.8, np.nan, np.nan, np.nan],
            "train_loss": [4.0, 3.9, 3.8, 5.0, 4.9, 4.8],
        }
    )
    assert {float(curve.loss[0]) for curve in views.training_curves(fit.primary, table)} == {4.0, 5.0}
    assert views.training_curves(fit.primary, None) == []
    assert views.training_curves(fit.primary, table.assign(run_id="someone else's")) == []


def test_slices_lie_on_the_fitted_surface_at_their_budget(fit: FitResult) -> None:
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    drawn = views.slices(fit.primary, law)
    assert [at.budget for at in drawn] == pytest.approx(fit.primary.rows.budgets)
    for at in drawn:
        tokens = at.budget / fit.primary.cost.flops_per_token(at.params)
        assert at.loss == pytest.approx(law.fit.loss(at.params, tokens))
        assert fit.primary.rows.budget[at.rows] == pytest.approx(at.budget)


def test_slices_of_scattered_rows_are_evenly_spaced(fit: FitResult) -> None:
    law, rows = fit.primary.parametric, fit.primary.rows
    assert isinstance(law, Parametric)
    scattered = replace(fit.primary, rows=replace(rows, budget=rows.flops * np.linspace(1, 1.001, len(rows))))
    drawn = views.slices(scattered, law)
    assert len(drawn) == 7
    assert np.ptp(np.diff(np.log([at.budget for at in drawn]))) < 1e-9
    assert all(np.abs(rows.flops[at.rows] / at.budget - 1).max(initial=0) <= 0.15 for at in drawn)


def test_refusals_are_grouped_by_reason(fit: FitResult) -> None:
    two = fit.primary.isoflop
    assert isinstance(two, Isoflop)
    ((reason, budgets),) = views.refusals(two.fit.parabolas)
    assert reason == two.fit.parabolas[3].refused
    assert budgets == pytest.approx([1e21])
    assert views.budgets_text(np.geomspace(1e18, 1e25, 8).tolist(), 3) == "1e18, 1e19, … (8 budgets), 1e25"


def test_figures_are_written_as_png_and_svg(fit: FitResult, sweep: Tables, tmp_path: Path) -> None:
    laws = [find_law("besiroglu2024")]
    written = write_figures(fit, sweep.curves, tmp_path, laws)
    assert [path.name for path in written] == [f"{name}.{kind}" for name in ALL for kind in ("png", "svg")]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in written)
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            ElementTree.fromstring(path.read_text())
            assert "total parameters" in path.read_text()  # beside its outlines, matplotlib notes each text
            assert "training FLOPs (matmul)" in path.read_text()
    frontier = (tmp_path / "figures" / "frontier.svg").read_text()
    assert "besiroglu2024 (6nd): a = 0.513" in frontier
    assert estimate_text(fit.primary.isoflop.a) in frontier  # type: ignore[union-attr]


def test_a_refused_approach_has_no_figure_and_leaves_no_old_one(fit: FitResult, tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    for name in ("envelope.png", "isoflop.svg", "mine.png"):
        (figures / name).write_text("of an earlier fit")
    written = write_figures(_without(fit, "envelope", "isoflop"), None, tmp_path)
    assert {path.stem for path in written} == {"frontier", "parametric"}
    assert not (figures / "envelope.png").exists()
    assert not (figures / "isoflop.svg").exists()
    assert (figures / "mine.png").read_text() == "of an earlier fit"


def test_nothing_fitted_means_no_figure(fit: FitResult, tmp_path: Path) -> None:
    assert write_figures(_without(fit, "envelope", "isoflop", "parametric"), None, tmp_path) == []
    assert not list(tmp_path.rglob("*.*"))


def test_the_same_fit_gives_the_same_bytes(fit: FitResult, tmp_path: Path) -> None:
    only = _without(fit, "envelope", "parametric")
    first, second = (
        {path.name: path.read_bytes() for path in write_figures(only, None, tmp_path / folder)} for folder in "ab"
    )
    assert first == second


def test_points_of_refused_budgets_are_hollow_and_say_why(fit: FitResult) -> None:
    figure = _drawings(fit, None, ())["isoflop"]()
    clouds = [cloud for cloud in figure.axes[0].collections if len(cloud.get_offsets())]
    assert [len(cloud.get_facecolors()) > 0 for cloud in clouds] == [True, True, True, False]
    label = figure.get_supxlabel()
    two = fit.primary.isoflop
    assert isinstance(two, Isoflop)
    assert label == f"hollow, 1e21: {two.fit.parabolas[3].refused}"


def test_the_envelope_figure_shows_every_curve_and_its_winners(fit: FitResult, sweep: Tables) -> None:
    one = fit.primary.envelope
    assert isinstance(one, Envelope)
    figure = _drawings(fit, sweep.curves, ())["envelope"]()
    lines: Any = figure.axes[0].collections[0]
    assert len(lines.get_segments()) == len(fit.primary.rows)
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx(one.fit.loss)
    winners = np.asarray(figure.axes[1].collections[0].get_offsets())
    assert winners[:, 1] == pytest.approx(one.fit.params)
    without = _drawings(fit, None, ())["envelope"]()
    assert not without.axes[0].collections[0].get_paths()


def test_tick_labels_do_not_overlap(fit: FitResult, sweep: Tables) -> None:
    with matplotlib.rc_context(STYLE):
        for draw in _drawings(fit, sweep.curves, ()).values():
            figure = draw()
            figure.canvas.draw()
            for axes in figure.axes:
                across = [label.get_window_extent() for label in axes.get_xticklabels()]
                up = [label.get_window_extent() for label in axes.get_yticklabels()]
                assert all(a.x1 < b.x0 for a, b in pairwise(across)), [t.get_text() for t in axes.get_xticklabels()]
                assert all(a.y1 < b.y0 for a, b in pairwise(up)), [t.get_text() for t in axes.get_yticklabels()]


def test_importing_the_figures_loads_no_drawing_library() -> None:
    code = "import sys, analysis.figures, analysis.report; print([m for m in sys.modules if m in sys.argv[1:]])"
    command = [sys.executable, "-c", code, "matplotlib", "plotly", "torch", "hydra"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"

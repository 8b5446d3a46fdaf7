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
import pytest
from analysis_fits import plain_fit, sweep, unconverged, without
from hypothesis import given
from hypothesis import strategies as st

from analysis.fitting.values import Estimate, Refused, Replicates
from analysis.laws.law import find_law
from analysis.laws.models import published_models
from analysis.report import labels, style, views
from analysis.report.figures import FIGURES, KINDS, _drawings, write_figures
from analysis.report.paper import STYLE
from analysis.result import Backtest, Envelope, FitResult, Holdout, Isoflop, Parametric
from analysis.text import count_text, estimate_text, flops_text, prediction_text


@pytest.fixture(scope="module")
def fit() -> FitResult:
    result = plain_fit()
    assert isinstance(result.primary.isoflop, Isoflop)
    assert len(result.primary.isoflop.fit.accepted) == 4
    return result


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
        (2.0099e42, "2.01e42"),
    ],
)
def test_counts_are_written_as_people_say_them(value: float, text: str) -> None:
    assert count_text(value) == text
    assert count_text(float("nan")) == "–"


@pytest.mark.parametrize(("value", "text"), [(3e12, "3e12"), (5.76e23, "5.76e23"), (1e18, "1e18"), (9.999e17, "1e18")])
def test_flops_are_written_without_padding(value: float, text: str) -> None:
    assert flops_text(value) == text


def test_estimates_say_what_is_known() -> None:
    assert estimate_text(Estimate(value=0.5, low=0.4, high=0.6)) == "0.500 (0.400 to 0.600)"
    assert estimate_text(Estimate(value=0.5)) == "0.500"
    assert estimate_text(Estimate(value=None)) == "–"
    assert estimate_text(Estimate(value=-1e-9)) == "0.000"
    assert prediction_text(Estimate(value=3e6, prediction=(2e6, 4e6)), count_text) == "2M to 4M"
    assert prediction_text(Estimate(value=3e6, low=2e6, high=4e6)) == "–"


@given(st.floats(-3, 27), st.floats(0.001, 12), st.integers(3, 9))
def test_ticks_are_few_round_apart_and_inside(start: float, decades: float, most: int) -> None:
    low, high = 10**start, 10 ** (start + decades)
    ticks = style.log_ticks(low, high, most)
    assert 1 <= len(ticks) <= most
    assert all(low * (1 - 1e-9) <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert all(a < b for a, b in pairwise(ticks))
    if decades > 1:
        assert all(float(f"{tick:.2g}") == pytest.approx(tick) for tick in ticks)
        assert len(ticks) >= 2 or most == 3 or decades < 2


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.text("abc", min_size=1, max_size=12)), max_size=30))
def test_names_beside_dots_never_overlap(dots: list[tuple[float, float, str]]) -> None:
    x, y, names = (list(column) for column in zip(*dots, strict=True)) if dots else ([], [], [])
    letter, line = 0.02, 0.05
    places = labels.placed(np.array(x), np.array(y), names, letter, line)
    assert len(places) == len(dots)
    boxes = []
    for (a, b, name), where in zip(dots, places, strict=True):
        if where:
            width, centre = letter * len(name), a
            if where == "middle right":
                centre = a + width / 2
            elif where == "middle left":
                centre = a - width / 2
            up = {"top center": line / 2, "bottom center": -line / 2}.get(where, 0.0)
            boxes.append((centre, b + up, width))
    for i, (a, b, width) in enumerate(boxes):
        for c, d, other in boxes[:i]:
            # two dots' width of slack: each name stands a little off its dot
            assert abs(a - c) > (width + other) / 2 - 2.5 * labels.DOT or abs(b - d) > line - 2.5 * labels.DOT


def test_a_lone_dot_is_named_at_its_right_unless_the_edge_is_near() -> None:
    place = [labels.placed(np.array([x]), np.array([0.5]), ["GPT-3"], 0.02, 0.05) for x in (0.5, 0.95)]
    assert place == [["middle right"], ["middle left"]]


def test_bands_are_percentiles_of_the_replicates(fit: FitResult) -> None:
    law = fit.primary.isoflop
    assert isinstance(law, Isoflop)
    params, tokens, loss = views.frontier(fit.primary, law, np.array([1e19]), 0.9)
    by_hand = np.exp(law.replicates.values[:, 2] + law.replicates.values[:, 3] * np.log(1e19))
    assert tokens.low[0] == pytest.approx(np.quantile(by_hand, 0.05))
    assert tokens.high[0] == pytest.approx(np.quantile(by_hand, 0.95))
    assert params.value[0] == pytest.approx(law.fit.laws.params(1e19))
    assert params.first[0] < params.low[0] < params.high[0] < params.last[0]
    assert 2.5 < loss.value[0] < 3.5


def test_approach_3_spends_the_whole_budget(fit: FitResult) -> None:
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    flops = views.frontier_flops(fit.primary)
    params, tokens, loss = views.frontier(fit.primary, law, flops, 0.95)
    assert fit.primary.cost.flops_per_token(params.value) * tokens.value == pytest.approx(flops)
    assert flops[-1] == pytest.approx(10 * fit.primary.rows.flops.max())
    assert loss.value == pytest.approx(law.fit.loss(params.value, tokens.value))


def test_without_replicates_there_is_no_band(fit: FitResult) -> None:
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    bare = replace(law, replicates=Replicates(values=np.empty((0, 5)), failed=0))
    params = views.frontier(fit.primary, bare, np.array([1e19, 1e20]), 0.95)[0]
    assert np.isnan([params.low, params.high, params.first, params.last]).all()
    assert np.isfinite(params.value).all()


def test_what_did_not_converge_is_not_quoted(fit: FitResult) -> None:
    lost = unconverged(fit).primary
    assert list(views.fitted(fit.primary)) == ["envelope", "isoflop", "parametric"]
    assert list(views.fitted(lost)) == ["envelope", "isoflop"]
    assert isinstance(lost.parametric, Parametric)
    assert lost.parametric.remark == "did not converge: relative gradient 0.02"


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
    ((reason, budgets),) = views.refusals(two.fit.valleys)
    assert reason == two.fit.valleys[4].refused
    assert budgets == pytest.approx([1e21])
    assert style.budgets_text(np.geomspace(1e18, 1e25, 8).tolist(), 3) == "1e18, 1e19, … (8 budgets), 1e25"


def test_normal_residuals_lie_on_the_line_of_a_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(2, 3, 20_000)
    order, quantiles, line = views.normal_quantiles(values)
    inner = np.abs(quantiles) < 2
    assert values[order][inner] == pytest.approx(line[inner], abs=0.25)
    assert line[np.argmin(np.abs(quantiles))] == pytest.approx(2, abs=0.1)


def test_the_bend_of_the_envelope_is_its_curvature(fit: FitResult) -> None:
    one = fit.primary.envelope
    assert isinstance(one, Envelope)
    flops, params = views.curvature_line(one)
    second = np.diff(np.log(params), 2) / np.diff(np.log(flops))[0] ** 2
    assert second == pytest.approx(one.fit.curvature, abs=1e-6)


def test_an_axis_of_deviations_holds_all_that_was_measured() -> None:
    flops, predicted = np.array([1e20, 1e21]), np.array([3.0, 2.8])
    held = Holdout(
        fitted_to=1e19,
        rows=20,
        flops=flops,
        measured=predicted * np.array([1.01, 0.98]),
        predicted=predicted,
        low=predicted * np.array([0.99, 0.1]),
        high=predicted * np.array([1.02, 50.0]),
        law_low=predicted,
        law_high=predicted,
    )
    low, high = views.deviation_ends([held])
    assert low < -2
    assert high > 1
    assert high < 5000  # not the interval that says nothing
    assert views.deviations(held)[0] == pytest.approx([1, -2])


def test_beside_models_only_where_it_does_not_squash_the_fit(fit: FitResult) -> None:
    rows = fit.primary.rows
    toy = replace(fit.primary, rows=replace(rows, flops=rows.flops * 1e-8))
    assert views.beside_models(fit.primary, [])
    assert not views.beside_models(toy, [])
    assert views.beside_models(toy, [find_law("hoffmann2022")])
    assert not views.beside_models(without(fit, "envelope", "isoflop", "parametric").primary, [])


def test_figures_are_written_in_three_formats(fit: FitResult, tmp_path: Path) -> None:
    laws = [find_law("besiroglu2024"), find_law("kaplan2020")]
    written = write_figures(fit, sweep().curves, tmp_path, laws)
    assert [path.name for path in written] == [f"{name}.{kind}" for name in FIGURES for kind in KINDS]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in written)
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
    for path in written:
        assert path.read_bytes().startswith(starts[path.suffix])
    for name in ("frontier", "models", "envelope", "isoflop", "parametric", "residuals"):
        drawn = (tmp_path / "figures" / f"{name}.svg").read_text()
        ElementTree.fromstring(drawn)
        assert "total parameters" in drawn  # beside its outlines, matplotlib notes each text
        assert "training FLOPs (matmul)" in drawn
    frontier = (tmp_path / "figures" / "frontier.svg").read_text()
    assert "besiroglu2024 (6nd): a = 0.513" in frontier
    assert estimate_text(fit.primary.isoflop.a) in frontier  # type: ignore[union-attr]
    models = (tmp_path / "figures" / "models.svg").read_text()
    assert sum(f"<!-- {one.name} -->" in models for one in published_models()) >= 5
    assert "6 N D" in models


def test_a_refused_approach_has_no_figure_and_leaves_no_old_one(fit: FitResult, tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    for name in ("envelope.png", "isoflop.svg", "backtest.pdf", "mine.png"):
        (figures / name).write_text("of an earlier fit")
    less = replace(without(fit, "envelope", "isoflop"), backtest=Refused(reason="one budget."))
    written = write_figures(less, None, tmp_path)
    assert {path.stem for path in written} == {"frontier", "models", "parametric", "residuals"}
    assert {path.name for path in figures.iterdir()} == {path.name for path in written} | {"mine.png"}
    assert (figures / "mine.png").read_text() == "of an earlier fit"


def test_nothing_fitted_means_no_figure(fit: FitResult, tmp_path: Path) -> None:
    nothing = replace(without(fit, "envelope", "isoflop", "parametric"), backtest=Refused(reason="nothing."))
    assert write_figures(nothing, None, tmp_path) == []
    assert not list(tmp_path.rglob("*.*"))


def test_the_same_fit_gives_the_same_bytes(fit: FitResult, tmp_path: Path) -> None:
    rows = fit.primary.rows
    only = without(replace(fit, backtest=Refused(reason="")), "envelope", "parametric")
    only = replace(only, primary=replace(only.primary, rows=replace(rows, flops=rows.flops * 1e-8)))
    first, second = (
        {path.name: path.read_bytes() for path in write_figures(only, None, tmp_path / folder)} for folder in "ab"
    )
    assert first == second
    assert len(first) == 6


def test_points_of_refused_budgets_are_hollow_and_say_why(fit: FitResult) -> None:
    figure = _drawings(fit, None, ())["isoflop"]()
    clouds = [cloud for cloud in figure.axes[0].collections if len(cloud.get_offsets())]
    assert [len(cloud.get_facecolors()) > 0 for cloud in clouds] == [True, True, True, True, False]
    two = fit.primary.isoflop
    assert isinstance(two, Isoflop)
    assert figure.get_supxlabel() == f"hollow, 1e21: {two.fit.valleys[4].refused}"


def test_the_envelope_figure_shows_every_curve_and_its_winners(fit: FitResult) -> None:
    one = fit.primary.envelope
    assert isinstance(one, Envelope)
    figure = _drawings(fit, sweep().curves, ())["envelope"]()
    lines: Any = figure.axes[0].collections[0]
    assert len(lines.get_segments()) == len(fit.primary.rows)
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx(one.fit.loss)
    winners = np.asarray(figure.axes[1].collections[0].get_offsets())
    assert winners[:, 1] == pytest.approx(one.fit.params)
    without_curves = _drawings(fit, None, ())["envelope"]()
    assert not without_curves.axes[0].collections[0].get_paths()


def test_the_backtest_figure_has_a_panel_for_each_thing_foretold(fit: FitResult) -> None:
    test = fit.backtest
    assert isinstance(test, Backtest)
    figure = _drawings(fit, None, ())["backtest"]()
    assert figure.axes[0].get_title() == "loss, Approach 3"
    assert len(figure.axes) == len(views.foretold(test))
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert [len(np.asarray(line.get_xdata())) for line in marks] == [len(at.measured) for at in test.loss]


def test_tick_labels_do_not_overlap(fit: FitResult) -> None:
    with matplotlib.rc_context(STYLE):
        for draw in _drawings(fit, sweep().curves, ()).values():
            figure = draw()
            figure.canvas.draw()
            for axes in figure.axes:
                across = [label.get_window_extent() for label in axes.get_xticklabels()]
                up = [label.get_window_extent() for label in axes.get_yticklabels()]
                assert all(a.x1 < b.x0 for a, b in pairwise(across)), [t.get_text() for t in axes.get_xticklabels()]
                assert all(a.y1 < b.y0 for a, b in pairwise(up)), [t.get_text() for t in axes.get_yticklabels()]


def test_importing_the_figures_loads_no_drawing_library() -> None:
    modules = "analysis.report.figures, analysis.report.document, analysis.report.latex"
    code = f"import sys, {modules}; print([m for m in sys.modules if m in sys.argv[1:]])"
    command = [sys.executable, "-c", code, "matplotlib", "plotly", "torch", "hydra"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_fits import full_fit, plain_fit, sweep, unconverged, without
from analysis_surfaces import isoflop_design, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.config import FitConfig
from analysis.fit import fit_tables
from analysis.fitting.values import Refused, Replicates
from analysis.ingest.tables import Exclusion
from analysis.laws.law import find_law
from analysis.laws.models import published_models
from analysis.report import charts, curves, diagnostics, plot, views
from analysis.report.card import fit_card
from analysis.report.document import MOST_ROWS, render_report, write_report
from analysis.report.page import Page, definitions, note, paragraph, subheading, table
from analysis.report.plot import Key, Panel
from analysis.result import Backtest, Conventions, Envelope, FitResult, Isoflop, Parametric
from analysis.text import count_text, estimate_text, prediction_text

EVIL = "<script>alert('x')</script>&\"<b>"
VOID = {"meta", "br", "link", "img", "hr", "line"}
APPROACHES = [
    *(f"{name}-{i}" for name in ("envelope", "isoflop") for i in (1, 2, 3)),
    *(f"parametric-{i}" for i in (1, 2)),
    *(f"residuals-{i}" for i in (1, 2, 3, 4)),
]
FRONTIER = ["frontier-1", "frontier-2", "frontier-3", "models-1", "models-2"]
BACKTEST = [f"backtest-{i}" for i in (1, 2, 3, 4)]
CHARTS = [
    *FRONTIER,
    *APPROACHES,
    *("profiles-1", "profiles-2"),
    *BACKTEST,
    *("compared-1", "repeated-1", "repeated-2"),
]


class Reader(HTMLParser):
    """A report as a browser sees it: tags, attributes, and text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert not self._open, f"left open: {self._open}"
        self.charts: dict[str, Any] = {}
        found = [re.search(r"const charts = (\{.*?\});\nfor ", script, re.DOTALL) for script in self.scripts]
        for match in filter(None, found):
            self.charts = json.loads(match[1])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif self._open and self._open[-1] != "style":
            self.text += f"{data}\n"

    @property
    def line(self) -> str:
        """The text on one line."""
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def fit() -> FitResult:
    return full_fit()


@pytest.fixture(scope="module")
def report(fit: FitResult) -> str:
    return render_report(fit, sweep().curves, [find_law("besiroglu2024"), find_law("kaplan2020")])


@pytest.fixture(scope="module")
def page(report: str) -> Reader:
    return Reader(report)


def test_the_report_is_one_small_file_that_loads_nothing(report: str, page: Reader) -> None:
    assert len(report.encode()) < 6_000_000
    assert report.count("plotly.js v") == 1
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    loading = [value for name, value in page.attributes if name in ("src", "href", "action", "data", "srcset")]
    assert loading
    assert all(value.startswith("#") for value in loading)
    assert not re.search(r"@import|url\(|https?://", report.split("<script>")[0])
    head = report[: report.index("<title>")]
    assert "default-src 'none'" in head
    assert "width=device-width" in head


def test_every_chart_has_its_box_and_title(page: Reader) -> None:
    assert list(page.charts) == CHARTS
    boxes = [value for name, value in page.attributes if name == "id" and not re.fullmatch(r"s\d+", value)]
    assert boxes == CHARTS
    assert [value for name, value in page.attributes if name == "class"].count("title") == len(CHARTS)
    links = {value[1:] for name, value in page.attributes if name == "href"}
    assert links == {value for name, value in page.attributes if name == "id" and re.fullmatch(r"s\d+", value)}


def test_one_table_has_the_exponents_under_every_convention(page: Reader, fit: FitResult) -> None:
    first = page.text[: page.text.index("Compute-optimal at each budget")]
    assert len(fit.by_convention) == 2
    assert first.index("N counts total parameters, C is matmul") < first.index("N counts non-embedding parameters")
    for each in fit.by_convention:
        for approach in each.approaches.values():
            assert not isinstance(approach, Refused)
            for estimate in (approach.a, approach.b):
                assert f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})" in first
    for warning in fit.warnings:
        assert warning in first


def test_the_measured_coverage_stands_beside_the_intervals(page: Reader, fit: FitResult) -> None:
    test = fit.backtest
    assert isinstance(test, Backtest)
    first = page.line[: page.line.index("Compute-optimal at each budget")]
    inside, count = test.coverage("isoflop")
    assert f"N* {inside} of {count} ({100 * inside / count:.0f} %)" in first
    inside, count = test.coverage_of_losses()
    assert f"L {inside} of {count} ({100 * inside / count:.0f} %)" in first


def test_optima_have_intervals_and_where_one_more_measurement_would_fall(page: Reader, fit: FitResult) -> None:
    for approach in fit.primary.approaches.values():
        assert not isinstance(approach, Refused)
        for at in approach.optima:
            assert estimate_text(at.n_opt, count_text) in page.text
            assert estimate_text(at.loss_opt) in page.text
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    assert f"measured: {prediction_text(law.optima[0].loss_opt)}" in page.text


def test_the_fit_card_follows_the_checklist(page: Reader, fit: FitResult) -> None:
    text = page.line[page.line.index("Fit card The law") :]
    three = fit.primary.parametric
    assert isinstance(three, Parametric)
    assert text.index("The law") < text.index("Training") < text.index("What was collected")
    assert text.index("How it was fitted") < text.index("How far to trust it") < text.index("To repeat it")
    for part in (
        "five free parameters",
        "all parameters: embedding, blocks and an untied head",
        "40 points, 40 runs, 40 clusters, 40 sizes, 5 budgets",
        "Seeds not stated by the source",
        "Repeated data 20 rows see data more than once, 16 times at most",
        "Schedule cosine",
        "Corpus zipf-1",
        "the loss that each point ends at",
        "from 85 % of a run's schedule on",
        "Left out 2 rows: 1 × diverged; 1 × failed",
        "none dropped by rule",
        "4 of 5 budgets have a usable minimum",
        "delta = 0.001",
        f"{three.fit.objective:.6g}",
        "Newton's method with the exact Hessian, damped, on (log A, log B, E, alpha, beta)",
        f"{three.fit.certificate.starts}, of which {three.fit.certificate.starts_agreeing} ended at the best",
        "Converged yes",
        fit.interval.method,
        "held-out losses inside their intervals",
        "fit.replicates=100",
        "fit.compare=false",
        "fit.window=null",
        f"numpy {np.__version__}",
        "Schedules are taken from the run folders.",
    ):
        assert part in text, part


def test_the_fit_card_says_what_the_source_does_not(fit: FitResult) -> None:
    bare = replace(fit, points=fit.points[["tokens"]], config=None, excluded=())
    text = Reader(fit_card(bare)).line
    assert "Corpus not stated by the source" in text
    assert "Schedule not stated by the source" in text
    assert "Repeated data not stated by the source" in text
    assert "Left out 0 rows" in text
    assert "Settings" not in text
    assert "Loss std" in Reader(fit_card(replace(fit, points=fit.points.assign(loss_std=0.004)))).line


def test_every_row_left_out_stands_with_its_reason(page: Reader) -> None:
    assert "diverged 1 run900" in page.line
    assert "failed 1 run901" in page.line


def test_every_row_used_stands_with_its_residual(page: Reader, fit: FitResult) -> None:
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    listed = page.text[page.text.rindex("By rising C.") :]
    for name, residual in zip(fit.primary.rows.point_id, views.residual_percent(law), strict=True):
        assert name in listed
        assert f"{residual:+.2f}" in listed


def test_the_backtest_is_told_by_origin_and_drawn(page: Reader, fit: FitResult) -> None:
    test = fit.backtest
    assert isinstance(test, Backtest)
    text = page.line[page.line.index("Backtest The fit repeated") :]
    for at in test.loss:
        row = f"{at.rows} {len(at.measured)} {count_text(at.flops.max() / at.fitted_to)}× {100 * at.coverage:.0f} %"
        assert row in text
    data = page.charts["backtest-1"]["data"]
    assert len(data) == 2 * len(test.loss)  # bars and diamonds
    last = test.loss[-1]
    assert _points(data[-1]["y"]) == pytest.approx(100 * (last.measured / last.predicted - 1), rel=1e-4)


def test_the_valley_window_and_bias_are_told(page: Reader, fit: FitResult) -> None:
    two = fit.primary.isoflop
    assert isinstance(two, Isoflop)
    assert two.fit.bias is not None
    for bias in two.fit.bias:
        assert f"{100 * np.expm1(bias):+.2g} %" in page.text
    for window in two.windows:
        if window.a is not None:
            assert f"{window.a:.3f} {window.b:.3f} {window.budgets}" in page.line


def test_charts_show_the_fit(page: Reader, fit: FitResult) -> None:
    one, two = fit.primary.envelope, fit.primary.isoflop
    assert isinstance(one, Envelope)
    assert isinstance(two, Isoflop)
    lines = [trace for trace in page.charts["envelope-1"]["data"] if trace["mode"] == "lines"]
    assert len(lines) == len(fit.primary.rows)
    diamonds = next(t for t in page.charts["isoflop-1"]["data"] if t.get("marker", {}).get("symbol") == "diamond")
    assert _points(diamonds["x"]) == pytest.approx([p.n_opt for p in two.fit.accepted])
    hollow = [t for t in page.charts["isoflop-1"]["data"] if t.get("marker", {}).get("symbol") == "circle-open"]
    assert [len(t["hovertext"]) for t in hollow] == [4]
    assert all("outside the sampled sizes" in text for text in hollow[0]["hovertext"])
    assert page.charts["frontier-1"]["layout"]["xaxis"]["title"]["text"] == "C, training FLOPs (matmul)"
    assert page.charts["frontier-1"]["layout"]["yaxis"]["title"]["text"] == "N*, total parameters"
    for label in (*plot.style.TITLES.values(), "besiroglu2024 (6nd)", "kaplan2020 (non-embedding, 6nd)"):
        assert label in page.text


def test_axes_hold_the_rows_and_no_published_model_squashes_them(page: Reader, fit: FitResult) -> None:
    rows = fit.primary.rows
    low, high = page.charts["frontier-1"]["layout"]["xaxis"]["range"]
    assert low <= np.log10(rows.flops.min())
    assert np.log10(rows.flops.max()) + 1 <= high < np.log10(rows.flops.max()) + 1.2
    low, high = page.charts["models-1"]["layout"]["xaxis"]["range"]
    reach = max(one.flops for one in published_models())
    assert low <= np.log10(rows.flops.min())
    assert high >= np.log10(reach)
    low, high = page.charts["parametric-1"]["layout"]["yaxis"]["range"]
    assert low < np.log10(rows.params.min()) < np.log10(rows.params.max()) < high


def test_published_models_are_dots_with_their_names(page: Reader) -> None:
    data = page.charts["models-2"]["data"]
    dots = next(trace for trace in data if trace.get("mode") == "markers")
    models = published_models()
    assert _points(dots["y"]) == pytest.approx([one.tokens for one in models], rel=1e-5)
    assert [text.split("<br>")[0] for text in dots["hovertext"]] == [one.name for one in models]
    named = [name for trace in data if trace.get("mode") == "text" for name in trace["text"]]
    assert 3 <= len(named) < len(models)
    assert "C = 6 N D" in page.line


def test_a_toy_fit_is_not_set_beside_published_models(fit: FitResult) -> None:
    rows, cost = fit.primary.rows, fit.primary.cost
    toy = replace(rows, flops=rows.flops * 1e-8, budget=rows.budget * 1e-8)
    primary = replace(fit.primary, rows=toy, cost=replace(cost, coefficient=cost.coefficient * 1e-8))
    small = Reader(render_report(replace(fit, primary=primary), None))
    assert "models-1" not in small.charts
    assert "Beside published models" not in small.text


def test_profiles_and_ways_to_resample_are_shown_where_asked_for(page: Reader) -> None:
    assert "a = 0.45 (0.405" not in page.text  # an interval with one end is no interval
    assert "Profile likelihoods" in page.text
    profile = page.charts["profiles-1"]
    assert max(_points(profile["data"][0]["y"])) <= 3 * 3.85
    assert profile["layout"]["shapes"][0]["y0"] == pytest.approx(3.841, abs=0.001)
    assert "Ways to resample" in page.text
    assert "cases – 0.450 (0.400 to 0.500)" in page.line
    plain = Reader(render_report(plain_fit(), None))
    for heading in ("Profile likelihoods", "Ways to resample", "Repeated data"):
        assert heading not in plain.line.replace("Repeated data not stated", "")


def test_repeated_data_is_told_or_refused_with_its_reason(page: Reader, fit: FitResult) -> None:
    text = page.line[page.line.index("16 rows of 40 see data more than once") :]
    assert "R_D*, of tokens 15.4 (11 to 21)" in text
    assert "R_N*, of parameters 5.31" in text
    assert "7 of 12 starts ended at the best objective" in text
    worth = page.charts["repeated-1"]["data"][1]
    assert max(_points(worth["y"])) == pytest.approx(1 + 15.4 * (1 - np.exp(-15 / 15.4)), rel=1e-3)
    refused = Reader(render_report(replace(fit, repeated=Refused(reason="too few fresh rows.")), None))
    assert "Not fitted: too few fresh rows." in refused.text
    assert "repeated-1" not in refused.charts


def test_whatever_came_from_outside_is_escaped(fit: FitResult) -> None:
    def rename(rows: Any) -> Any:
        return replace(rows, point_id=(EVIL, *rows.point_id[1:]), run_id=(EVIL, *rows.run_id[1:]))

    primary = replace(
        fit.primary, rows=rename(fit.primary.rows), conventions=Conventions(params=EVIL, flops=EVIL, loss=EVIL)
    )
    hostile = replace(
        fit,
        source=EVIL,
        primary=primary,
        by_convention=(primary,),
        points=fit.points.assign(schedule=EVIL),
        excluded=(Exclusion(row=EVIL, reason=EVIL),),
        warnings=(EVIL,),
        notes=(EVIL,),
        group={EVIL: EVIL},
        backtest=Refused(reason=EVIL),
        repeated=Refused(reason=EVIL),
    )
    steps = sweep().curves
    named = steps.assign(run_id=steps["run_id"].astype(object).replace(fit.primary.rows.run_id[0], EVIL))
    laws = [replace(find_law("besiroglu2024"), name=EVIL)]
    raw = render_report(hostile, named, laws, title=EVIL)
    page = Reader(raw)
    assert page.tags.count("script") == 2
    assert "b" not in page.tags
    assert page.text.count(EVIL) >= 12
    assert "<script>alert" not in raw
    shown = json.dumps(page.charts)
    assert "&lt;script&gt;alert" in shown  # plotly reads HTML in its labels, so there it is escaped twice
    assert "<script" not in shown
    assert "<b>" not in shown


HOSTILE = st.text(st.sampled_from("<>&\"'/\\ab script\u2028\x00{}$%]-!"), max_size=40)


@given(HOSTILE, HOSTILE)
def test_no_text_leaves_its_place(one: str, other: str) -> None:
    page = Page(one, other)
    page.section(one, paragraph(other), subheading(one), note([one, other]), definitions([(one, other)]))
    page.section(other, table((one, (other, one)), [(other, one), one, ((one, other), other)], "lw"))
    read = Reader(page.render())
    assert set(read.tags) <= {
        *("html", "head", "meta", "title", "style", "body", "header", "h1", "p", "nav", "a", "section", "h2", "h3"),
        *("div", "ul", "li", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "small"),
    }


@given(HOSTILE, HOSTILE)
@settings(max_examples=20)
def test_no_text_leaves_its_chart(one: str, other: str) -> None:
    figure = plot.blank({"title": "x"}, {"title": "y"})
    plot.dots(figure, np.ones(1), np.ones(1), {"size": 3}, [one])
    plot.line(figure, np.ones(2), np.ones(2), {"color": "red"}, other)
    plot.names(figure, np.ones(1), np.ones(1), [one], "top center")
    plot.curve(figure, np.ones(2), np.ones(2), {"width": 1}, other)
    shown = figure.to_json()
    assert shown is not None
    drawn = "".join(_texts(json.loads(shown)["data"]))
    assert "<" not in drawn.replace("<br>", "").replace("<extra></extra>", "")
    page = Page(one, other)
    keys = [Key(one, "#123456"), Key(other, "#000", "dashdot")]
    page.section(one, page.charts("chart", [Panel(one, figure)], other, keys))
    body, _, own = page.render().split("<script>")
    assert own[: own.index("</script>")].count("<") == 0
    read = Reader(body + "</body></html>")
    assert read.tags.count("svg") == 2
    assert not {"script", "b", "img"} & set(read.tags)


def test_the_title_is_the_sources_unless_given(fit: FitResult) -> None:
    assert "<title>Scaling fit: made up</title>" in render_report(fit, None)
    assert "<title>Toy &amp; co</title>" in render_report(fit, None, title="Toy & co")


def test_refused_approaches_give_their_reason_and_no_chart(fit: FitResult) -> None:
    two = fit.primary.isoflop
    assert isinstance(two, Isoflop)
    refused = Refused(reason="too few budgets.", valleys=two.fit.valleys)
    primary = replace(fit.primary, isoflop=refused, envelope=Refused(reason="no curves."))
    page = Reader(render_report(replace(fit, primary=primary, by_convention=(primary,)), None))
    assert "Refused: too few budgets." in page.text
    assert "Refused: no curves." in page.text
    assert "outside the sampled sizes" in page.text
    assert not [name for name in page.charts if name.startswith(("isoflop", "envelope"))]
    assert "frontier-1" in page.charts
    assert "1 envelope refused: no curves." in page.line


def test_what_did_not_converge_says_so_and_is_not_quoted(fit: FitResult) -> None:
    page = Reader(render_report(unconverged(fit), None))
    first = page.line[: page.line.index("Compute-optimal at each budget")]
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    assert "3 parametric did not converge: relative gradient 0.02" in first
    assert "Approach 3 did not converge" in page.line
    assert "Converged no" in page.line
    assert estimate_text(law.optima[0].n_opt, count_text) not in page.text


def test_with_everything_refused_the_report_still_says_what_is_known(fit: FitResult) -> None:
    nothing = without(fit, "envelope", "isoflop", "parametric")
    no = Refused(reason="not enough.")
    empty = replace(
        nothing,
        by_convention=(nothing.primary,),
        backtest=no,
        excluded=(),
        warnings=(),
        points=fit.points[[]],
        compared={},
        repeated=None,
    )
    raw = render_report(empty, None)
    page = Reader(raw)
    assert page.charts == {}
    assert "plotly.js" not in raw
    assert len(raw) < 60_000
    assert "No approach could be fitted" in page.text
    assert page.text.count("Refused: parametric does not suit.") == 1
    assert "Not possible: not enough." in page.text
    assert "None: every row of the source was used." in page.text
    assert "run000" in page.text


def test_without_intervals_values_stand_alone(fit: FitResult) -> None:
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    none = Replicates(values=np.empty((0, 5)), failed=0)
    bare = replace(law, a=replace(law.a, low=None, high=None), replicates=none)
    primary = replace(fit.primary, parametric=bare)
    text = Reader(render_report(replace(fit, primary=primary, by_convention=(primary,)), None)).text
    assert f"\n{law.a.value:.3f}\n" in text


def test_thousands_of_rows_make_a_small_page(tmp_path: Path) -> None:
    design = isoflop_design(np.geomspace(1e18, 1e21, 30), sizes=50, spacing=1.05, noise=0.002)
    made = tables(*design)
    big = fit_tables(made, FitConfig(replicates=30, origins=1))
    path = tmp_path / "a" / "report.html"
    write_report(big, made.curves, path)
    assert path.stat().st_size < 6_500_000
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    page = Reader(path.read_text())
    lines = [trace for trace in page.charts["envelope-1"]["data"] if trace["mode"] == "lines"]
    assert len(lines) == curves.MOST_CURVES
    assert f"The {MOST_ROWS:,} rows of least C, of 1,500; points.csv has all." in page.text
    drawn = [len(_points(trace["y"])) for trace in page.charts["backtest-1"]["data"]]
    assert max(drawn) <= diagnostics.MOST_HELD


def test_the_charts_of_a_fit_without_curves_show_its_envelope(fit: FitResult) -> None:
    one = fit.primary.envelope
    assert isinstance(one, Envelope)
    first = charts.envelope(fit.primary, one, None, 0.95)[0]
    data = json.loads(first.figure.to_json() or "")["data"]
    assert len(_points(data[0]["y"])) == len(one.fit.loss)


def _points(values: Any) -> list[float]:
    """A chart's numbers, packed by plotly or not."""
    if isinstance(values, dict):
        kinds = {"f4": np.float32, "f8": np.float64}
        return np.frombuffer(base64.b64decode(values["bdata"]), kinds[values["dtype"]]).tolist()
    return list(values)


def _texts(value: Any) -> list[str]:
    """Every text in some JSON."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in _texts(part)]


def test_repeated_data_is_drawn_though_other_fits_leave_rows_out(fit: FitResult) -> None:
    fewer = replace(fit, points=fit.points.iloc[5:])
    page = Reader(render_report(fewer, None))
    assert {"repeated-1", "repeated-2"} <= set(page.charts)
    assert len(_points(page.charts["repeated-2"]["data"][0]["y"])) == len(fit.points)

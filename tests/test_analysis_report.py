from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from analysis_surfaces import cosine_curves, isoflop_design, tables

from analysis import views
from analysis.card import fit_card
from analysis.config import FitConfig
from analysis.csvfile import read_csv
from analysis.fit import fit_tables
from analysis.fits import Refused
from analysis.laws import find_law
from analysis.report import MOST_ROWS, render_report, write_report
from analysis.result import Backtest, Conventions, Envelope, Exclusion, FitResult, Isoflop, Parametric
from analysis.tables import Tables, complete_curves
from analysis.text import count_text, estimate_text

EVIL = "<script>alert('x')</script>&\"<b>"
VOID = {"meta", "br", "link", "img", "hr"}
CHARTS = [
    "frontier-1",
    "frontier-2",
    *(f"{name}-{i}" for name in ("envelope", "isoflop", "parametric") for i in (1, 2, 3)),
    "backtest-1",
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

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif self._open and self._open[-1] != "style":
            self.text += f"{data}\n"


@pytest.fixture(scope="module")
def sweep() -> Tables:
    design = isoflop_design(np.geomspace(1e18, 1e21, 4), sizes=9, noise=0.002)
    keep = np.r_[np.arange(27), 32:36]
    design = tuple(column[keep] for column in design)
    made = tables(*design, params_non_embedding=design[0] * 0.9, schedule="cosine", corpus="zipf-1")
    return replace(
        made, excluded=(Exclusion(row="run900", reason="diverged"), Exclusion(row="run901", reason="failed"))
    )


@pytest.fixture(scope="module")
def fit(sweep: Tables) -> FitResult:
    return fit_tables(sweep, FitConfig(replicates=100))


@pytest.fixture(scope="module")
def report(fit: FitResult, sweep: Tables) -> str:
    return render_report(fit, sweep.curves, [find_law("besiroglu2024")])


def test_the_report_is_one_small_file_that_loads_nothing(report: str) -> None:
    page = Reader(report)
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


def test_every_chart_has_its_box(report: str) -> None:
    page = Reader(report)
    assert list(page.charts) == CHARTS
    boxes = [value for name, value in page.attributes if name == "id" and not value.startswith("s")]
    assert boxes == CHARTS
    links = {value[1:] for name, value in page.attributes if name == "href"}
    assert links == {value for name, value in page.attributes if name == "id" and value.startswith("s")}


def test_the_headline_gives_exponents_and_optima_under_each_convention(report: str, fit: FitResult) -> None:
    text = Reader(report).text
    assert len(fit.by_convention) == 2
    assert text.index("N counts total parameters") < text.index("N counts non-embedding parameters")
    for each in fit.by_convention:
        for approach in each.approaches.values():
            assert not isinstance(approach, Refused)
            for estimate in (approach.a, approach.b):
                assert f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})" in text
            for at in approach.optima:
                assert estimate_text(at.n_opt, count_text) in text
                assert estimate_text(at.loss_opt) in text


def test_the_fit_card_tells_what_the_fit_rests_on(report: str, fit: FitResult) -> None:
    text = " ".join(Reader(report).text.split())
    two, three = fit.primary.isoflop, fit.primary.parametric
    assert isinstance(two, Isoflop)
    assert isinstance(three, Parametric)
    assert "31 points, 31 runs, 31 clusters, 31 sizes, 4 budgets" in text
    assert "Schedule cosine" in text
    assert "Corpus zipf-1" in text
    assert "delta = 0.001" in text
    assert f"{three.fit.objective:.6g}" in text
    assert f"{three.fit.certificate.starts}, of which {three.fit.certificate.starts_agreeing} ended at the best" in text
    assert "Converged yes" in text
    assert "3 of 4 budgets have a usable parabola" in text
    assert fit.interval.method in text
    assert fit.warnings
    for warning in fit.warnings:
        assert warning in text
    assert str(two.fit.parabolas[3].refused) in text


def test_every_row_left_out_stands_with_its_reason(report: str) -> None:
    text = " ".join(Reader(report).text.split())
    assert "diverged 1 run900" in text
    assert "failed 1 run901" in text


def test_every_row_used_stands_with_its_residual(report: str, fit: FitResult) -> None:
    text = Reader(report).text
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    listed = text[text.rindex("By rising C.") :]
    for name, residual in zip(fit.primary.rows.point_id, views.residual_percent(law), strict=True):
        assert name in listed
        assert f"{residual:+.2f}" in listed


def test_the_backtest_is_told_and_drawn(report: str, fit: FitResult) -> None:
    test = fit.backtest
    assert isinstance(test, Backtest)
    page = Reader(report)
    assert f"{100 * test.coverage:.0f} % of them lie in its 95 % prediction interval" in page.text
    assert len(_points(page.charts["backtest-1"]["data"][1]["y"])) == test.rows


def test_charts_show_the_fit(report: str, fit: FitResult) -> None:
    charts = Reader(report).charts
    one, two = fit.primary.envelope, fit.primary.isoflop
    assert isinstance(one, Envelope)
    assert isinstance(two, Isoflop)
    curves = charts["envelope-1"]["data"]
    assert sum(trace["mode"] == "lines" for trace in curves) == len(fit.primary.rows)
    diamonds = next(t for t in charts["isoflop-1"]["data"] if t.get("marker", {}).get("symbol") == "diamond")
    assert _points(diamonds["x"]) == pytest.approx([p.n_opt for p in two.fit.accepted])
    hollow = [t for t in charts["isoflop-1"]["data"] if t.get("marker", {}).get("symbol") == "circle-open"]
    assert [len(t["text"]) for t in hollow] == [4]
    assert all("outside the sampled sizes" in text for text in hollow[0]["text"])
    named = [trace.get("name") for trace in charts["frontier-1"]["data"] if trace.get("showlegend")]
    assert named == [*views.TITLES.values(), "besiroglu2024 (6nd)"]
    assert charts["frontier-1"]["layout"]["xaxis"]["title"]["text"] == "C, training FLOPs (matmul)"
    assert charts["frontier-1"]["layout"]["yaxis"]["title"]["text"] == "N*, total parameters"


def test_whatever_came_from_outside_is_escaped(fit: FitResult, sweep: Tables) -> None:
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
    )
    curves = sweep.curves.assign(run_id=sweep.curves["run_id"].replace(fit.primary.rows.run_id[0], EVIL))
    laws = [replace(find_law("besiroglu2024"), name=EVIL)]
    raw = render_report(hostile, curves, laws, title=EVIL)
    page = Reader(raw)
    assert page.tags.count("script") == 2
    assert "b" not in page.tags
    assert page.text.count(EVIL) >= 12
    assert "<script>alert" not in raw
    shown = json.dumps(page.charts)
    assert "&lt;script&gt;alert" in shown  # plotly reads HTML in its labels, so there it is escaped twice
    assert "<script" not in shown
    assert "<b>" not in shown


def test_the_title_is_the_sources_unless_given(fit: FitResult) -> None:
    assert "<title>Scaling fit: made up</title>" in render_report(fit, None)
    assert "<title>Toy &amp; co</title>" in render_report(fit, None, title="Toy & co")


def test_refused_approaches_give_their_reason_and_no_chart(fit: FitResult) -> None:
    two = fit.primary.isoflop
    assert isinstance(two, Isoflop)
    refused = Refused(reason="too few budgets.", parabolas=two.fit.parabolas)
    primary = replace(fit.primary, isoflop=refused, envelope=Refused(reason="no curves."))
    page = Reader(render_report(replace(fit, primary=primary, by_convention=(primary,)), None))
    assert "Refused: too few budgets." in page.text
    assert "Refused: no curves." in page.text
    assert "outside the sampled sizes" in page.text
    assert not [name for name in page.charts if name.startswith(("isoflop", "envelope"))]
    assert "frontier-1" in page.charts


def test_with_everything_refused_the_report_still_says_what_is_known(fit: FitResult) -> None:
    no = Refused(reason="not enough.")
    primary = replace(fit.primary, envelope=no, isoflop=no, parametric=no)
    empty = replace(
        fit, primary=primary, by_convention=(primary,), backtest=no, excluded=(), warnings=(), points=fit.points[[]]
    )
    raw = render_report(empty, None)
    page = Reader(raw)
    assert page.charts == {}
    assert "plotly.js" not in raw
    assert len(raw) < 60_000
    assert "No approach could be fitted" in page.text
    assert page.text.count("Refused: not enough.") == 3
    assert "Not possible: not enough." in page.text
    assert "None: every row of the source was used." in page.text
    assert "not stated by the source" in page.text
    assert "run000" in page.text


def test_without_intervals_values_stand_alone(fit: FitResult) -> None:
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    bare = replace(law, a=replace(law.a, low=None, high=None), replicates=None)
    primary = replace(fit.primary, parametric=bare)
    text = Reader(render_report(replace(fit, primary=primary, by_convention=(primary,)), None)).text
    assert f"\n{law.a.value:.3f}\n" in text
    assert "parametric not resampled" in text


def test_thousands_of_runs_are_thinned(tmp_path: Path) -> None:
    design = isoflop_design(np.geomspace(1e18, 1e21, 30), sizes=50, spacing=1.05, noise=0.002)
    made = tables(*design)
    long = cosine_curves(design[0], design[1], rows=200)
    steps = pd.DataFrame(
        {"run_id": long.run_id, "tokens": long.tokens, "progress": long.progress, "val_loss": long.loss}
    )
    big = fit_tables(made, FitConfig(replicates=30))
    path = tmp_path / "a" / "report.html"
    write_report(big, complete_curves(steps), path)
    assert path.stat().st_size < 6_000_000
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    page = Reader(path.read_text())
    lines = [trace for trace in page.charts["envelope-1"]["data"] if trace["mode"] == "lines"]
    assert len(lines) == views.MOST_CURVES
    assert sum(len(_points(trace["x"])) for trace in lines) <= views.MOST_CURVE_POINTS
    assert f"The {MOST_ROWS:,} rows of least C, of 1,500; points.csv has all." in page.text


def test_the_240_public_points_give_a_report(shared_data: Path) -> None:
    source = read_csv(shared_data / "chinchilla_fig4_left_epoch.csv")
    kept = source.points["epoch_fit_sample"] == 1
    fit = fit_tables(replace(source, points=source.points[kept]), FitConfig(replicates=100))
    page = Reader(render_report(fit, source.curves, [find_law("hoffmann2022")]))
    assert "240 points fitted" in page.text
    assert "477.826" in page.text  # A of Besiroglu et al.'s rows at delta = 1e-3
    assert "0.514 (" in page.text
    assert "parametric-1" in page.charts


def _points(values: Any) -> list[float]:
    """A chart's numbers, packed by plotly or not."""
    if isinstance(values, dict):
        kinds = {"f4": np.float32, "f8": np.float64}
        return np.frombuffer(base64.b64decode(values["bdata"]), kinds[values["dtype"]]).tolist()
    return list(values)


def test_the_fit_card_shows_the_losses_own_scatter_where_the_source_gives_it(fit: FitResult) -> None:
    assert "Loss std" not in fit_card(fit)
    assert "Loss std" in fit_card(replace(fit, points=fit.points.assign(loss_std=0.004)))

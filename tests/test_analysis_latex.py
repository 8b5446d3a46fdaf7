from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from analysis_fits import plain_fit, unconverged, without
from hypothesis import given
from hypothesis import strategies as st

from analysis.config import FitConfig
from analysis.fit import fit_tables
from analysis.fitting.values import Estimate
from analysis.ingest.frames import read_frame
from analysis.report import latex
from analysis.report.card import fit_card
from analysis.report.latex import SPECIAL, escape, write_latex
from analysis.result import Conventions, Isoflop, Parametric
from analysis.text import count_text
from trainer.shape import ParamCount

HOSTILE = r"100% of $N_{0}$ & \input{/etc/passwd} ~^#<>"


def _rows(table: str) -> list[list[str]]:
    """The cells between the first and the last rule."""
    body = table[table.index(r"\toprule") : table.index(r"\bottomrule")]
    lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r" \\")]
    return [re.split(r"(?<!\\) & ", line) for line in lines]


def _whole(table: str) -> None:
    """Environments and braces that close, and no character that LaTeX would take for a command by accident."""
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", table):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    plain = re.sub(r"\\[{}\\]", "", table)
    assert plain.count("{") == plain.count("}")
    assert len(re.findall(r"(?<!\\)\$", table)) % 2 == 0
    comments = [line for line in table.splitlines() if re.search(r"(?<!\\)%", line)]
    assert comments in ([], [latex.HEAD.strip()])


def test_a_fit_gives_three_tables(tmp_path: Path) -> None:
    written = write_latex(plain_fit(), tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "tables/exponents.tex",
        "tables/optima.tex",
        "tables/law.tex",
    ]
    for path in written:
        text = path.read_text()
        _whole(text)
        assert r"\toprule" in text
        assert rf"\label{{tab:isoflop-{path.stem}}}" in text
        assert "all parameters: embedding, blocks and an untied head" in text
        assert r"95 \% intervals by bootstrap" in text
        assert "100 replicates" in text


def test_exponents_stand_under_each_convention_with_their_intervals() -> None:
    fit = plain_fit()
    text = latex.exponents(fit)
    rows = _rows(text)
    assert len(fit.by_convention) > 1
    assert len(rows) == 1 + 4 * len(fit.by_convention)
    two = fit.primary.isoflop
    assert isinstance(two, Isoflop)
    assert ["2 isoFLOP", *(f"{e.value:.3f} ({e.low:.3f}--{e.high:.3f})" for e in (two.a, two.b))] in rows
    assert "total, all parameters" in text
    assert "non-embedding, parameters without the embedding" in text


def test_optima_name_each_budget_once() -> None:
    fit = plain_fit()
    rows = _rows(latex.optima(fit))[1:]
    two = fit.primary.isoflop
    assert isinstance(two, Isoflop)
    assert [row[0] for row in rows if row[0]] == ["$10^{17}$", "$10^{18}$", "$10^{19}$", "$10^{20}$", "$10^{21}$"]
    assert len(rows) == 3 * len(two.optima)
    first = two.optima[0].n_opt
    assert rows[1][2] == f"{count_text(first.value)} ({count_text(first.low)}--{count_text(first.high)})"


def test_the_law_has_five_numbers_with_their_ends() -> None:
    fit = plain_fit()
    law = fit.primary.parametric
    assert isinstance(law, Parametric)
    rows = _rows(latex.law(fit))[1:]
    assert [row[0] for row in rows] == ["$E$", "$A$", "$B$", r"$\alpha$", r"$\beta$"]
    assert rows[3][1:] == [f"{end:.6g}" for end in (law.alpha.value, law.alpha.low, law.alpha.high)]  # type: ignore[str-format]


def test_what_was_refused_or_did_not_converge_is_not_quoted(tmp_path: Path) -> None:
    write_latex(plain_fit(), tmp_path)
    lost = unconverged(without(plain_fit(), "envelope"))
    written = write_latex(lost, tmp_path)
    assert [path.name for path in written] == ["exponents.tex", "optima.tex"]
    assert not (tmp_path / "tables" / "law.tex").exists()
    rows = _rows(latex.exponents(lost))
    assert ["1 envelope", r"\multicolumn{2}{c}{refused}"] in rows
    assert ["3 parametric", r"\multicolumn{2}{c}{did not converge}"] in rows
    assert "3 parametric" not in latex.optima(lost)
    assert latex.optima(without(lost, "envelope", "isoflop", "parametric")) == ""


def test_names_from_outside_stay_text() -> None:
    fit = plain_fit()
    primary = replace(fit.primary, conventions=Conventions(params=HOSTILE, flops=HOSTILE, loss=HOSTILE))
    hostile = replace(fit, primary=primary, by_convention=(primary,), group={HOSTILE: HOSTILE})
    for text in (latex.exponents(hostile), latex.optima(hostile), latex.law(hostile)):
        _whole(text)
        assert r"\input" not in text
        assert r"\textbackslash{}input\{/etc/passwd\}" in text


@given(st.text(max_size=60))
def test_escaped_text_holds_no_live_character(text: str) -> None:
    shown = escape(text)
    left = re.sub(r"\\(?:text[a-z]+\{\}|ensuremath\{\\times\}|ensuremath\{-\}|[&%$#_{}])", "", shown)
    assert not set(left) & set("\\&%$#_{}~^<>\n\r")
    kept = [letter for letter in text if letter.isprintable() and letter not in SPECIAL]
    assert all(letter in left for letter in kept)


@pytest.mark.parametrize(
    ("value", "text"), [(1e18, "$10^{18}$"), (3e18, r"$3 \times 10^{18}$"), (5.76e23, r"$5.76 \times 10^{23}$")]
)
def test_flops_are_mathematics(value: float, text: str) -> None:
    assert latex.power_of_ten(value) == text


def test_what_is_not_known_is_a_dash() -> None:
    assert latex.estimate(Estimate(value=None), str) == "--"
    assert latex.estimate(Estimate(value=2.0), str) == "2.0"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_pdflatex_takes_the_tables(tmp_path: Path) -> None:
    written = write_latex(plain_fit(), tmp_path)
    inputs = "".join(rf"\input{{tables/{path.name}}}" for path in written)
    paper = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "paper.tex").write_text(paper)
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "paper.tex"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(
    ("columns", "n", "words"),
    [
        (["params_non_embedding"], "non_embedding", "6 times non-embedding parameters times tokens"),
        (["params_total", "params_non_embedding"], "total", "6 times total parameters times tokens"),
    ],
)
def test_six_nd_says_which_n_it_multiplies(columns: list[str], n: str, words: str) -> None:
    points = plain_fit().points[[*columns, "tokens", "loss"]]
    fit = fit_tables(read_frame(points), FitConfig(replicates=0, params=ParamCount.non_embedding))
    assert fit.primary.conventions.flops == "6nd" and fit.primary.conventions.params == "non_embedding"
    assert fit.params_of_6nd == fit.to_dict()["params_of_6nd"] == n
    assert f"training FLOPs, {words}" in fit_card(fit)
    assert words in latex.exponents(fit)

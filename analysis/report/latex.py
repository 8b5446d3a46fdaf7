"""Tables of a fit for a paper, in LaTeX with booktabs: ``\\input{tables/exponents.tex}`` and its like.

Each file is a whole ``table`` with caption and label; the caption states what N, C and L count and how the intervals
were made, so that a table says what it means wherever it is pasted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.config import Form
from analysis.fitting.values import Estimate, Refused
from analysis.report import style, views
from analysis.report.card import PARAMS, above_text, flops_meaning
from analysis.report.numbers import COEFFICIENTS
from analysis.result import Conventions, FitResult, Parametric
from analysis.text import SHORT_TITLES, THREE, count_text
from trainer.files import disk_faults, write_whole

TABLES = ("exponents", "optima", "law")
HEAD = "% Written by isoflop fit; needs \\usepackage{booktabs}.\n"
SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "“": "``",
    "”": "''",
    "×": r"\ensuremath{\times}",
    "−": r"\ensuremath{-}",
    "\n": " ",
    "\r": " ",
}
FORMS = {
    Form.free: r"$L(N, D) = E + A / N^\alpha + B / D^\beta$",
    Form.tied: r"$L(N, D) = E + A / N^\alpha + B / D^\alpha$",
    Form.fixed_E: r"$L(N, D) = E + A / N^\alpha + B / D^\beta$ with $E$ given",
}
SYMBOLS = {"alpha": r"$\alpha$", "beta": r"$\beta$"}


def write_latex(fit: FitResult, out: Path) -> list[Path]:
    """Write the tables that a fit has, of ``TABLES``, to ``out/tables``; older ones that it has not are removed.

    Returns
    -------
    The files written.

    Raises
    ------
    MachineFault
        If the disk is full or read-only.
    """
    tables = {"exponents": exponents(fit), "optima": optima(fit), "law": law(fit)}
    written = []
    for name, text in tables.items():
        path = out / "tables" / f"{name}.tex"
        if text:
            write_whole(path, HEAD + text)
            written.append(path)
        else:
            with disk_faults(path):
                path.unlink(missing_ok=True)
    return written


def exponents(fit: FitResult) -> str:
    """A and b by approach under each pair of conventions."""
    body: list[str] = []
    for number, under in enumerate(fit.by_convention):
        counts = style.COUNTS.get(under.conventions.params, under.conventions.params)
        body += [r"\midrule"] * (number > 0)
        body.append(rf"\multicolumn{{3}}{{l}}{{$N$: {escape(counts)}, $C$: {escape(under.conventions.flops)}}} \\")
        for name, at in under.approaches.items():
            if isinstance(at, Refused) or not at.quotable:
                why = "refused" if isinstance(at, Refused) else "did not converge"
                body.append(_row([escape(SHORT_TITLES[name]), rf"\multicolumn{{2}}{{c}}{{{why}}}"]))
            else:
                body.append(_row([escape(SHORT_TITLES[name]), *(estimate(e, THREE) for e in (at.a, at.b))]))
    counted = [under.conventions for under in fit.by_convention]
    caption = r"Exponents of $N^* \propto C^a$ and $D^* \propto C^b$. " + _basis(fit, counted)
    return _table(caption, "exponents", "lll", ["Approach", "$a$", "$b$"], body)


def optima(fit: FitResult) -> str:
    """N*, D* and L* by budget and approach, each with its interval; "" where no approach is fitted."""
    found = [(at.budget, name, at) for name, approach in views.fitted(fit.primary).items() for at in approach.optima]
    body: list[str] = []
    last = None
    for budget, name, at in sorted(found, key=lambda one: one[0]):
        body += [r"\midrule"] * (last not in (None, budget))
        first = "" if budget == last else power_of_ten(budget)
        cells = (estimate(at.n_opt, count_text), estimate(at.d_opt, count_text), estimate(at.loss_opt, THREE))
        body.append(_row([first, escape(SHORT_TITLES[name]), *cells]))
        last = budget
    if not body:
        return ""
    caption = "Compute-optimal parameters, tokens and loss by budget. " + _basis(fit, [fit.primary.conventions])
    return _table(caption, "optima", "llrrr", ["$C$", "Approach", "$N^*$", "$D^*$", "$L^*$"], body)


def law(fit: FitResult) -> str:
    """E, A, B, alpha and beta of Approach 3; "" where it is refused or did not converge."""
    three = fit.primary.parametric
    if not isinstance(three, Parametric) or not three.quotable:
        return ""
    body = [_row([SYMBOLS.get(name, f"${name}$"), *_ends(getattr(three, name))]) for name in COEFFICIENTS]
    found, above = three.fit.certificate, escape(above_text(three.fit))
    caption = (
        f"Approach 3: {FORMS[three.fit.form]}. Least objective {_six(three.fit.objective)}{above}, "
        f"{found.starts_agreeing} of {found.starts} starts at it. "
    )
    if found.unidentified:
        names = ", ".join(SYMBOLS.get(name, f"${name}$") for name in found.unidentified)
        caption += f"The data do not determine {names}. "
    return _table(caption + _basis(fit, [fit.primary.conventions]), "law", "lrrr", ["", "fitted", "low", "high"], body)


def escape(text: str) -> str:
    """Plain text as LaTeX shows it, whatever it holds."""
    return "".join(SPECIAL.get(letter, letter) for letter in text if letter in "\n\r" or letter.isprintable())


def estimate(value: Estimate, text: Callable[[float], str]) -> str:
    """A number and its interval: 0.514 (0.492--0.543)."""
    if value.value is None:
        return "--"
    if value.low is None or value.high is None:
        return escape(text(value.value))
    return f"{escape(text(value.value))} ({escape(text(value.low))}--{escape(text(value.high))})"


def power_of_ten(value: float) -> str:
    """FLOPs as mathematics: $3 \\times 10^{18}$."""
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if mantissa == "1" else rf"${mantissa} \times {power}$"


def _basis(fit: FitResult, counted: Sequence[Conventions]) -> str:
    """What a caption must state."""
    interval = fit.interval
    params = {at.params: f"{style.COUNTS.get(at.params, at.params)}, {PARAMS.get(at.params, '')}" for at in counted}
    flops = {at.flops: f"{at.flops}, {flops_meaning(fit, at.flops)}" for at in counted}
    group = "".join(f"{name} = {value}; " for name, value in fit.group.items())
    level = style.interval_text(interval.level)
    return (
        f"{escape(group)}{len(fit.primary.rows)} points. $N$: {escape('; '.join(params.values()))}. "
        f"$C$: {escape('; '.join(flops.values()))}. $L$ in {escape(counted[0].loss)}. "
        f"{escape(level)} intervals by {escape(interval.method)}; {interval.replicates} replicates."
    )


def _table(caption: str, name: str, columns: str, head: Sequence[str], body: Sequence[str]) -> str:
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:isoflop-{name}}}",
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        _row(head),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _ends(value: Estimate) -> list[str]:
    return ["--" if end is None else _six(end) for end in (value.value, value.low, value.high)]


def _six(value: float) -> str:
    """Six digits; 1.2e-05 as mathematics."""
    text = f"{value:.6g}"
    small = re.fullmatch(r"(.+)e([+-]\d+)", text)
    return rf"${small[1]} \times 10^{{{int(small[2])}}}$" if small else text

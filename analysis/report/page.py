"""A self-contained HTML page: sections, tables and plotly charts, with plotly.js inside: nothing is loaded."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from analysis.report.plot import Key, Panel

Cell = str | tuple[str, str]
"""A text, or one with a smaller line below it."""

DASHES = {"solid": "none", "dashed": "7 4", "dashdot": "8 3 2 3", "dotted": "2 3"}
# The policy lets the page run what it contains and load nothing; data: and blob: serve "download as PNG".
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

STYLE = """
:root { --text: #1c1c1e; --muted: #5b5f66; --rule: #dcdfe3; --tint: #f6f7f8; --link: #0b5a94; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 1.5rem 4rem; background: #fff; color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; font-weight: 650; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; font-weight: 650; margin: 3rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; font-weight: 650; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; overflow-wrap: anywhere; }
.lead { font-size: 1.05rem; color: var(--muted); }
nav { font-size: .9rem; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0 0; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; margin: .6rem 0 1.2rem; max-width: 100%; }
.tall { max-height: 26rem; overflow-y: auto; width: fit-content; border: 1px solid var(--rule); }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid var(--text); }
td { border-bottom: 1px solid var(--rule); }
td small, th small { display: block; color: var(--muted); font-weight: 400; }
.group { padding-top: .8rem; border-bottom: 1px solid var(--rule); color: var(--muted); }
.right { text-align: right; }
.wrap { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
.tall th { position: sticky; top: 0; background: #fff; }
.tall th:first-child, .tall td:first-child { padding-left: .6rem; }
figure { margin: 1rem 0 1.4rem; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.charts.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.keys { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; font-size: .85rem; margin: .4rem 0 .6rem; }
.first { display: grid; gap: 0 2.5rem; }
.first > div { min-width: 0; }
.first > .aside { max-height: 40rem; overflow-y: auto; }
@media (min-width: 66rem) {
  .first { grid-template: auto 1fr / minmax(0, 1fr) 20rem; }
  .first > .aside { grid-area: 1 / 2 / 3 / 3; max-height: 60rem; }
}
.spans { white-space: normal; color: var(--muted); }
.spans div { max-width: 30rem; overflow-wrap: anywhere; }
.panel { min-width: 0; break-inside: avoid; }
.panel:only-child { max-width: 36rem; }
.title { font-size: .88rem; font-weight: 600; overflow-wrap: anywhere; }
.chart { height: 20rem; min-width: 0; overflow: hidden; }
figcaption { color: var(--muted); font-size: .9rem; max-width: 46rem; margin-top: .4rem; }
dl { display: grid; grid-template-columns: minmax(8rem, 13rem) 1fr; margin: .6rem 0; font-size: .92rem; }
dt, dd { margin: 0; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
dt { color: var(--muted); }
.note { background: var(--tint); border-left: 3px solid #d55e00; padding: .5rem 1rem; margin: 1rem 0;
  max-width: 46rem; }
.note p { margin: .1rem 0; }
.aside .note { margin-top: .4rem; font-size: .92rem; }
.note ul { margin: .2rem 0; padding-left: 1.1rem; }
.note li { margin: .2rem 0; overflow-wrap: anywhere; }
.plain { border-left-color: var(--rule); }
@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 3rem; }
  h1 { font-size: 1.35rem; }
  table { font-size: .78rem; }
  th, td { padding-right: .5rem; }
  dl { grid-template-columns: 1fr; }
  dt { border-bottom: 0; padding-bottom: 0; }
  dd { padding-top: 0; }
}
@media print {
  html { font-size: 70%; }
  body { padding: 0; max-width: none; }
  nav, .modebar { display: none; }
  .scroll, .tall, .first > .aside { max-height: none; overflow: visible; border: 0; }
  th, td { white-space: normal; overflow-wrap: break-word; }
  .tall th { position: static; }
  .charts, .charts.two { grid-template-columns: 1fr 1fr; }
  .chart .svg-container, .chart .main-svg { width: 100% !important; height: 100% !important; }
  h2, h3, .keys { break-after: avoid; }
  tr, .note, figcaption { break-inside: avoid; }
}
"""

# With a view box, a chart shrinks with its box on paper, where no script can draw it again.
# Written-out ticks suit the whole range; once the reader zooms, plotly chooses, until a double click shows all again.
START = """
for (const [id, chart] of Object.entries(charts)) {
  Plotly.newPlot(id, chart.data, chart.layout, {displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: {filename: id, scale: 3}});
  const box = document.getElementById(id);
  new ResizeObserver(() => Plotly.Plots.resize(box)).observe(box);
  const fit = () => box.querySelectorAll(".main-svg").forEach(svg =>
    svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`));
  box.on("plotly_afterplot", fit);
  fit();
  const whole = JSON.stringify([chart.layout.xaxis.range, chart.layout.yaxis.range]);
  box.on("plotly_relayout", change => {
    if (!Object.keys(change).some(key => key.includes("range"))) return;
    const now = JSON.stringify([box.layout.xaxis.range, box.layout.yaxis.range]), update = {};
    for (const axis of ["xaxis", "yaxis"])
      if (chart.layout[axis].ticktext) update[axis + ".tickmode"] = now === whole ? "array" : "auto";
    Plotly.relayout(box, update);
  });
}
"""


class Page:
    """Sections in order, and the charts that they hold."""

    def __init__(self, title: str, lead: str) -> None:
        """Both are plain text."""
        self.title, self.lead = title, lead
        self._sections: list[tuple[str, str]] = []
        self._charts: dict[str, str] = {}

    def section(self, heading: str, *parts: str) -> None:
        """Add a section under a plain-text heading; the parts are HTML."""
        self._sections.append((heading, "\n".join(parts)))

    def charts(self, name: str, panels: Sequence[Panel], caption: str, keys: Sequence[Key] = ()) -> str:
        """HTML for ``panels`` side by side, or below each other where it is narrow.

        Above them stands what their colours mean, below them a plain-text caption.
        """
        boxes = []
        for number, panel in enumerate(panels, start=1):
            self._charts[f"{name}-{number}"] = str(panel.figure.to_json())
            title = f'<div class="title">{html.escape(panel.title)}</div>'
            boxes.append(f'<div class="panel">{title}<div class="chart" id="{name}-{number}"></div></div>')
        legend = f"<figcaption>{html.escape(caption)}</figcaption>"
        two = " two" if len(panels) in (2, 4) else ""
        above = f'<div class="keys">{"".join(map(_key, keys))}</div>' if keys else ""
        return f'<figure>{above}<div class="charts{two}">{"".join(boxes)}</div>{legend}</figure>'

    def render(self) -> str:
        """The whole page."""
        title = html.escape(self.title)
        links = [f'<a href="#s{i}">{html.escape(name)}</a>' for i, (name, _) in enumerate(self._sections)]
        body = [
            f'<section id="s{i}"><h2>{html.escape(name)}</h2>\n{text}</section>'
            for i, (name, text) in enumerate(self._sections)
        ]
        return "\n".join(
            [
                '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{title}</title><style>{STYLE}</style></head><body>",
                f'<header><h1>{title}</h1><p class="lead">{html.escape(self.lead)}</p>',
                f"<nav>{' '.join(links)}</nav></header>",
                *body,
                self._scripts(),
                "</body></html>\n",
            ]
        )

    def _scripts(self) -> str:
        if not self._charts:
            return ""
        from plotly.offline import get_plotlyjs

        # In a script only "<" can end it early; within JSON it stands in texts alone, where \\u003c means the same.
        charts = ",".join(f'"{name}":{text}' for name, text in self._charts.items()).replace("<", "\\u003c")
        hint = "<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>"
        return f"{hint}<script>{get_plotlyjs()}</script>\n<script>const charts = {{{charts}}};{START}</script>"


def first_screen(first: str, aside: str, second: str) -> str:
    """Three pieces of HTML below each other; where there is room, the middle one stands beside the others."""
    return f'<div class="first"><div>{first}</div><div class="aside">{aside}</div><div>{second}</div></div>'


def paragraph(text: str) -> str:
    """Plain text as HTML."""
    return f"<p>{html.escape(text)}</p>"


def subheading(text: str) -> str:
    """Plain text as HTML."""
    return f"<h3>{html.escape(text)}</h3>"


def note(texts: Sequence[str], kind: str = "") -> str:
    """Plain sentences set off from the text; ``kind`` "plain" for those that warn of nothing."""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f'<div class="note {kind}">{paragraph(texts[0]) if len(texts) == 1 else f"<ul>{items}</ul>"}</div>'


def table(head: Sequence[Cell], rows: Iterable[Sequence[Cell] | str], align: str, *, tall: bool = False) -> str:
    """Plain-text cells as an HTML table that scrolls within its box.

    Parameters
    ----------
    rows
        A text alone heads the rows below it. In a row with fewer cells than the head, the last takes the rest's place.
    align
        A letter per column: l, r, or w for long text that wraps.
    tall
        Whether it also scrolls up and down.
    """
    classes = [{"l": "", "r": ' class="right"', "w": ' class="wrap"'}[letter] for letter in align]
    top = "".join(f"<th{c}>{_cell(cell)}</th>" for c, cell in zip(classes, head, strict=True))
    body = "\n".join(
        f'<tr><th class="group" colspan="{len(classes)}">{html.escape(row)}</th></tr>'
        if isinstance(row, str)
        else f"<tr>{_cells(row, classes)}</tr>"
        for row in rows
    )
    box = "scroll tall" if tall else "scroll"
    return f'<div class="{box}"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _cells(row: Sequence[Cell], classes: Sequence[str]) -> str:
    missing = len(classes) - len(row)
    if missing == 0:
        return "".join(f"<td{c}>{_cell(cell)}</td>" for c, cell in zip(classes, row, strict=True))
    last = f'<td class="spans" colspan="{missing + 1}"><div>{_cell(row[-1])}</div></td>'
    return "".join(f"<td{c}>{_cell(cell)}</td>" for c, cell in zip(classes, row[:-1], strict=False)) + last


def _key(key: Key) -> str:
    line = f'<line x1="1" y1="5" x2="31" y2="5" stroke="{key.colour}" stroke-dasharray="{DASHES[key.dash]}"/>'
    return f'<span><svg width="32" height="10" stroke-width="2.5">{line}</svg> {html.escape(key.label)}</span>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return html.escape(cell)
    return f"{html.escape(cell[0])}<small>{html.escape(cell[1])}</small>"


def definitions(items: Iterable[tuple[str, str]]) -> str:
    """Plain-text terms and what they are."""
    return f"<dl>{''.join(f'<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>' for term, text in items)}</dl>"

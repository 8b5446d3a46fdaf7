"""The report in a real browser; skipped where chromium is absent."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from analysis_fits import full_fit, sweep

from analysis.laws.law import find_law
from analysis.report.document import render_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = {"phone": 390, "desktop": 1280}

# What went wrong is gathered from the page's first line on; what was drawn is noted once it has had time to draw.
WATCH = """<script>
const faults = [];
addEventListener("error", event => faults.push(event.message));
addEventListener("unhandledrejection", event => faults.push(String(event.reason)));
addEventListener("securitypolicyviolation", event => faults.push(event.violatedDirective));
for (const name of ["error", "warn"]) console[name] = (...texts) => faults.push(texts.join(" "));
</script>"""
LOOK = """<script>
setTimeout(() => {
  const page = document.body.getBoundingClientRect(), drawn = {};
  for (const box of document.querySelectorAll(".chart")) {
    const svg = box.querySelector(".main-svg"), here = box.getBoundingClientRect();
    drawn[box.id] = {
      marks: box.querySelectorAll(".trace path, .trace text, .contourlines path").length,
      axes: box.querySelectorAll(".xtick, .ytick").length,
      svg: svg ? svg.getBoundingClientRect().width : 0,
      box: here.width,
    };
  }
  const wide = [...document.querySelectorAll("body *")]
    .filter(one => !one.closest(".scroll table") && !one.closest(".chart"))
    .filter(one => one.getBoundingClientRect().right > page.right + 1)
    .map(one => one.tagName + "." + one.className);
  document.documentElement.dataset.seen = JSON.stringify({faults, drawn, wide, width: page.width});
}, 1000);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
@pytest.mark.parametrize("kind", WIDTHS)
def test_every_chart_is_drawn_within_its_box(kind: str, tmp_path: Path) -> None:
    page = render_report(full_fit(), sweep().curves, [find_law("besiroglu2024")])
    seen = _look(page, WIDTHS[kind], tmp_path)
    assert seen["faults"] == []
    assert seen["wide"] == []
    assert seen["width"] <= WIDTHS[kind]
    assert len(seen["drawn"]) == page.count('class="chart"') > 20
    for name, chart in seen["drawn"].items():
        assert chart["marks"] >= 1, name
        assert chart["axes"] >= 2, name
        assert chart["svg"] == pytest.approx(chart["box"], abs=1.5), name
        assert 300 < chart["box"] <= WIDTHS[kind], name


def _look(page: str, width: int, folder: Path) -> Any:
    """What a browser makes of a page of ``width`` pixels: chromium's own windows are no narrower than 500."""
    narrow = f'<body style="width:{width}px">'
    page = page.replace("<head>", f"<head>{WATCH}", 1).replace("<body>", narrow, 1).replace("</body>", f"{LOOK}</body>")
    (folder / "report.html").write_text(page)
    command = [
        str(BROWSER),
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"),
        *(f"--window-size={max(width, 500)},1000", "--virtual-time-budget=4000", "--dump-dom"),
        (folder / "report.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<html[^>]* data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))

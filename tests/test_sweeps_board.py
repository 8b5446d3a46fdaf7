"""The board: what it serves, what it refuses, and how it looks in a browser."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sweep_runs import ISOFLOP, Command, smoke

from sweeps.board import listen
from sweeps.paths import SweepFolder
from trainer.errors import UserError

pytest.importorskip("uvicorn", reason="the board's packages are not installed")
pytest.importorskip("starlette")
BROWSER, DRIVER = (next(filter(None, map(shutil.which, names)), None) for names in (
    ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)
))  # fmt: skip
EVIL = "<img src=x onerror=document.body.dataset.hurt=1>"


@pytest.fixture
def board(isoflop: Command, folder: SweepFolder) -> Iterator[str]:
    """The address of a board of a sweep that has ended, one of whose points failed with a cause made of markup."""
    assert isoflop("run", *smoke(folder)).code == 0
    plan = json.loads(folder.plan_path.read_text())
    victim = folder.run(plan["points"][0]["run_id"])
    record = next(iter(victim.points().values())) | {"verdict": f"failed: {EVIL}", "loss": None}
    (victim.path / "points.jsonl").write_text(json.dumps(record) + "\n")
    command = [*ISOFLOP, "board", "sweep=smoke", f"root={folder.root}", "port=0", "fit.replicates=20"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate(timeout=30)


def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, str, Any]:
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(errors="replace"), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace"), error.headers


def test_it_serves_the_sweep_and_nothing_else(board: str, folder: SweepFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()}
    assert board.startswith("http://127.0.0.1:")
    status, page, headers = ask(board)
    assert status == 200 and "isoflop board" in page and "default-src 'none'" in headers["Content-Security-Policy"]
    status, body, _ = ask(f"{board}overview.json")
    content = json.loads(body)
    assert status == 200 and content["sweep"] == "smoke" and content["ended"] and content["report"]
    assert [one["points"] for one in content["budgets"]] == [4, 4, 4] and content["figures"]
    assert content["states"][0]["cause"] == EVIL
    assert ask(f"{board}report")[0] == 200
    assert ask(f"{board}figures/{content['figures'][0]}")[0] == 200
    for path in ("figures/..%2F..%2Fplan", "figures/plan.json", "plan.json", "board.py", "docs", "openapi.json"):
        assert ask(board + path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE"):
        assert ask(board, method)[0] == 405
    assert ask(board, Host="elsewhere.example")[0] == 400  # a name that was made to lead here
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()} == before


def test_what_becomes_of_the_sweep_is_said(board: str, folder: SweepFolder) -> None:
    folder.plan_path.write_text("{")
    time.sleep(1.1)
    status, said, _ = ask(f"{board}overview.json")
    assert status == 503 and "plan.json" in said and "Traceback" not in said


def test_a_busy_port_and_a_foreign_address_are_refused_in_a_sentence(isoflop: Command, folder: SweepFolder) -> None:
    isoflop("plan", *smoke(folder))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = isoflop("board", "sweep=smoke", f"root={folder.root}", f"port={port}")
        assert answer.code == 2 and answer.out == ""
        assert f"port={port} cannot be listened on (Address already in use); choose another" in answer.sentence
    for host, port in (("203.0.113.7", 0), ("no such host", 0), ("127.0.0.1", 70000)):
        with pytest.raises(UserError, match=r"port="):
            listen(host, port)
    answer = isoflop("board", "sweep=smoke", f"root={folder.root / 'none'}")
    assert answer.code == 2 and "plan" in answer.sentence


@pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="chromium and its driver are not installed")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_page_in_a_browser(board: str, width: int, height: int, tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(board)
        deadline = time.monotonic() + 60
        while not browser.execute_script("return document.querySelectorAll('#points tbody tr').length"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        look = browser.execute_script
        assert look("return document.querySelectorAll('#points tbody tr').length") == 12
        assert look("return document.querySelectorAll('#budgets tbody tr').length") == 3
        assert look("return document.querySelectorAll('#valleys circle').length") == 11
        assert EVIL in look("return document.querySelector('#points').textContent")
        assert look("return document.body.dataset.hurt") is None and "sweep" not in browser.title.lower()
        assert look("return document.documentElement.scrollWidth") <= width
        browser.find_element("css selector", "#filter").send_keys("failed")
        assert look("return document.querySelectorAll('#points tbody tr').length") == 1
        time.sleep(2.5)  # the choice outlives a refresh
        assert look("return document.querySelectorAll('#points tbody tr').length") == 1
        while not look("return [...document.images].every(one => one.complete && one.naturalWidth)"):
            look("window.scrollTo(0, document.body.scrollHeight)")
            assert time.monotonic() < deadline
            time.sleep(0.2)
        faults = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
        assert faults == []
        browser.find_element("css selector", "#links a").click()
        assert browser.current_url.endswith("/report") and look("return document.querySelectorAll('.chart').length")
    finally:
        browser.quit()

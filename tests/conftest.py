"""Fixtures that every test may use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import Fake
from hypothesis import HealthCheck, settings
from slurm_cluster import Cluster, missing

# A busy machine decides nothing.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

LAW_TRAINER = 'trainer.command="{python} -m trainer.examples.law_trainer {folder}"'
"""The external trainer that answers from a law in a tenth of a second."""


SLOW_FILES = ("slurm_faults", "slurm_storms", "sweeps_faults", "sweeps_run", "sweeps_cli", "slurm_tasks")
"""Where several processes share the tests (``pytest -n``), they begin with these."""
WHOLE = False
"""Whether ``--whole`` was given."""
DRAWN = ("isoflop",), {"svg": {"Date": None}}
"""Figures and their formats where a test looks at something else: seven in three take seconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run fault schedules and property tests in full length")
    parser.addoption("--require-slurm", action="store_true", help="fail where no SLURM cluster can be started")


def pytest_configure(config: pytest.Config) -> None:
    global WHOLE
    WHOLE = bool(config.getoption("--whole"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not WHOLE:
        items[:] = [item for item in items if item.get_closest_marker("whole") is None]
    if hasattr(config, "workerinput"):  # one of several processes, each of which takes one file after another
        slow = [f"test_{name}" for name in SLOW_FILES]
        items.sort(key=lambda item: slow.index(item.path.stem) if item.path.stem in slow else len(slow))


def examples(whole: int, short: int) -> int:
    """How many examples a property is tried on: for ``settings`` of tests that take seconds."""
    return whole if WHOLE else short


@pytest.fixture(scope="session")
def whole() -> bool:
    """Whether the long schedules were asked for."""
    return WHOLE


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data sets that lie beside the checkout on some machines."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder.name}/ beside the checkout")
    return folder


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The one line that a refused command prints, without the program's name."""
        lines = [line for line in self.err.splitlines() if line.startswith("isoflop: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("isoflop: ")


@pytest.fixture
def isoflop(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command, run in this process."""
    from analysis.report import figures
    from sweeps import cli

    for name, value in zip(("FIGURES", "KINDS"), DRAWN, strict=True):
        monkeypatch.setattr(figures, name, value)

    def command(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["isoflop", *arguments])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = int(left.code or 0)
        said = capfd.readouterr()
        return Answer(code, said.out, said.err)

    return command


@pytest.fixture(scope="session")
def slurm_started(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A real SLURM cluster for all tests that want one."""
    if (reason := missing()) is not None:
        if request.config.getoption("--require-slurm"):
            pytest.fail(f"--require-slurm: {reason}")
        pytest.skip(f"needs SLURM: {reason}")
    base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # pytest's own folders are too long for sockets
    cluster = Cluster(base)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(base)


@pytest.fixture
def slurm(slurm_started: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, idle and whole, and SLURM's commands of this process pointed at it."""
    slurm_started.clear()
    monkeypatch.setenv("SLURM_CONF", str(slurm_started.conf))
    yield slurm_started
    slurm_started.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Any]:
    """The smoke sweep's folder; whatever still works there afterwards is stopped."""
    from sweeps.dispatch.jobs import live_jobs
    from sweeps.paths import SweepFolder
    from trainer.lock import holder

    sweep = SweepFolder.of(str(tmp_path), "smoke")
    yield sweep
    for run in [run.path for run in sweep.runs()] + list(live_jobs(sweep)):
        who = holder(run)
        if who is not None:
            os.kill(who.pid, signal.SIGKILL)


@pytest.fixture
def fake(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """SLURM's commands on PATH, without a SLURM behind them; its nodes are this machine."""
    fake = Fake(tmp_path_factory.mktemp("slurm") / "bin", monkeypatch)
    fake.change(sinfo=[f"main*|1-00:00:00|64|256000|gpu:8|{os.uname().nodename}|4"])
    return fake

"""``isoflop sync`` and fits in W&B, with the real client, against a stand-in for its server or offline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_runs import Command, smoke
from wandb_home import at_home
from wandb_stand_in import KEY, StandIn, stand_in

from analysis.ingest.wandb_files import read_attempt
from sweeps.fit_wandb import fit_values
from sweeps.paths import SweepFolder
from trainer.story import is_whole, read_mark

OFFLINE = ("tracking=wandb", "tracking.mode=offline", "tracking.project=study")
TO_LAB = ("tracking=wandb", "tracking.project=study", "tracking.entity=lab")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as memory:
        at_home(monkeypatch, tmp_path, memory.url)
        yield memory


def same_fit(one: Path, two: Path) -> None:
    """Two fits of the same rows, read from different places."""
    first, second = (json.loads((place / "fit.json").read_text()) for place in (one, two))
    for fit in (first, second):
        del fit["source"], fit["reading"]
    assert first == second


def test_a_sweep_mirrored_offline_is_handed_in_once_and_read_back_to_the_same_fit(
    isoflop: Command, folder: SweepFolder, server: StandIn, tmp_path: Path
) -> None:
    assert isoflop("run", *smoke(folder, *OFFLINE)).code == 0
    assert server.runs == {} and all(is_whole(run) for run in folder.runs())
    at = ["sweep=smoke", f"root={folder.root}"]
    first = isoflop("sync", *at, *TO_LAB)
    assert first.code == 0 and first.out.startswith("12 runs handed in ("), first.err
    assert first.out.endswith("1 fits handed in, 0 were there already\n")
    assert {run.state for run in server.runs.values()} == {"finished"} and server.unknown == []
    (fitted,) = [name for name, run in server.runs.items() if run.node()["jobType"] == "fit"]
    assert server.runs[fitted].summary["points"] == 12
    assert any(name.startswith(f"{fitted}/media/table/points") for name in server.files)
    assert ("fit", "fit-smoke") in {(kind, name) for kind, name, _ in server.artifacts}
    assert all(read_mark(run)["mode"] == "online" for run in folder.runs())
    sent = server.sent
    for how in ((), ("from=runs",)):
        again = isoflop("sync", *at, *TO_LAB, *how)
        fits = "0 fits handed in, 1 were there already\n"
        assert again.out == f"0 runs handed in (0 rows), 12 were there already\n{fits}" and server.sent == sent
    lost = next(iter(server.runs))
    del server.runs[lost]  # by somebody, in the browser
    assert isoflop("sync", *at, *TO_LAB, "from=runs").out.startswith("1 runs handed in")
    del server.runs[fitted]
    assert "1 fits handed in, 0 were there already" in isoflop("sync", *at, *TO_LAB).out
    copied = tmp_path / "copied"
    for run in folder.runs():
        shutil.copytree(run.path / "wandb", copied / run.run_id, symlinks=True)
    server.runs.clear()
    assert isoflop("sync", f"path={copied}", *TO_LAB).out.startswith("12 runs handed in")

    fits = {name: tmp_path / name for name in ("runs", "files", "api", "again")}
    isoflop("fit", *at, "fit.replicates=50", f"out={fits['runs']}")
    isoflop("fit", "source=wandb", f"path={folder.path}", "fit.replicates=50", f"out={fits['files']}")
    for name in ("api", "again"):
        asked = server.asked.count("HistoryPage") + server.asked.count("RunParquetHistory")
        answer = isoflop("fit", "source=wandb", "project=lab/study", "fit.replicates=50", f"out={fits[name]}")
        assert answer.code == 0, answer.err
    assert server.asked.count("HistoryPage") + server.asked.count("RunParquetHistory") == asked  # all was kept
    for name in ("files", "api", "again"):
        same_fit(fits["runs"], fits[name])
    held = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert held == []


def test_runs_that_never_asked_for_a_mirror_are_handed_in_on_request(
    isoflop: Command, folder: SweepFolder, server: StandIn
) -> None:
    assert isoflop("run", *smoke(folder)).code == 0
    at = ["sweep=smoke", f"root={folder.root}", *TO_LAB]
    plain = isoflop("sync", *at)
    assert plain.out.startswith("0 runs handed in") and "from=runs hands it in all the same" in plain.err
    server.projects.clear()  # one that is not there yet
    assert isoflop("sync", *at, "from=runs").out.startswith("12 runs handed in")


def test_sync_says_what_is_wrong_in_a_sentence(
    isoflop: Command, folder: SweepFolder, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ["sweep=smoke", f"root={folder.root}", *TO_LAB]
    assert "holds no run" in isoflop("sync", *at).sentence
    assert "does not exist" in isoflop("sync", f"path={tmp_path / 'none'}").sentence
    (tmp_path / "torn.wandb").write_bytes(b":W&B")
    torn = isoflop("sync", f"path={tmp_path / 'torn.wandb'}", *TO_LAB)
    assert torn.out.startswith("0 runs handed in") and "names no run" in torn.err
    isoflop("run", *smoke(folder))
    monkeypatch.setenv("WANDB_API_KEY", "d" * 40)
    at_home(monkeypatch, tmp_path, server.url)
    monkeypatch.setenv("WANDB_API_KEY", "d" * 40)
    refused = isoflop("sync", *at, "from=runs")
    assert refused.code == 2 and "check its name (entity/project), your login" in refused.sentence
    assert "d" * 40 not in refused.err


def test_a_fit_is_logged_as_a_run_with_its_files(
    isoflop: Command, folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_home(monkeypatch, tmp_path)
    monkeypatch.setattr("analysis.report.figures.KINDS", {"png": {}})
    assert isoflop("run", *smoke(folder, *OFFLINE)).code == 0
    (file,) = (folder.fit / "wandb").glob("offline-run-*/*.wandb")
    read = read_attempt(file)
    assert (read.job_type, read.group, read.state) == ("fit", "smoke", "finished") and "12 points" in read.name
    fit = json.loads((folder.fit / "fit.json").read_text())
    values = fit_values(fit)
    assert values["points"] == 12 and values["isoflop/a"] == fit["approaches"]["isoflop"]["a"]["value"]
    assert {name: read.summary[name] for name in values} == values
    kinds = {value for row in read.rows for key, value in row.items() if key.endswith("._type")}
    assert {"table-file", "image-file", "html-file"} <= kinds
    for name in (b"fit.json", b"points.csv", b"report.html"):
        assert name in file.read_bytes()


def test_a_fit_that_w_and_b_does_not_take_is_a_fit_all_the_same(
    isoflop: Command, folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_home(monkeypatch, tmp_path)
    assert isoflop("run", *smoke(folder)).code == 0
    monkeypatch.setenv("WANDB_API_KEY", "")
    answer = isoflop("fit", "sweep=smoke", f"root={folder.root}", "fit.replicates=50", *TO_LAB)
    assert answer.code == 0 and (folder.fit / "fit.json").exists()
    assert answer.err.count("W&B did not take the fit") == 1


def test_projects_that_cannot_be_read_are_one_sentence(isoflop: Command, server: StandIn) -> None:
    answer = isoflop("fit", "source=wandb", "project=lab/nothing")
    assert answer.code == 2 and "W&B project lab/nothing cannot be read" in answer.sentence
    assert "Could not find project nothing" in answer.sentence

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_runs import make_run
from wandb_home import at_home

from analysis.config import Fill
from analysis.ingest.runs import read_runs
from analysis.ingest.tables import Tables
from analysis.ingest.wandb_api import PAUSES, read_project
from analysis.ingest.wandb_files import read_attempt, read_offline
from analysis.ingest.wandb_runs import FINISHED
from trainer.config import Backend, TrackingConfig, WandbMode
from trainer.errors import UserError
from trainer.runfolder import RunFolder, final_record
from trainer.story import story_of
from trainer.tracking import EXACT, WandbRun, summary_of
from trainer.wandb_log import BLOCK

OURS = TrackingConfig(backend=Backend.wandb, mode=WandbMode.offline, project="study", every_seconds=0.0)
STEPS = 300
THEIRS = {"params": "model.n_params", "tokens": "seen", "loss": "val/loss", "train_loss": "train/loss"}


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root with sweep ``s`` of two mirrored runs, one of two attempts and one unfinished; and others' runs."""
    root = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        at_home(patch, root)
        run = make_run(root, "corpus", steps=STEPS, tracking=OURS)
        _attempt(run, range(170), None)
        _attempt(run, range(140, STEPS), "done")
        _attempt(make_run(root, "corpus", steps=STEPS, seed=1, tracking=OURS), range(20), None)
        _theirs(root / "theirs")
        yield root


def _attempt(folder: RunFolder, steps: range, verdict: str | None) -> None:
    """Write what an attempt writes, and let W&B's client have it; what an earlier attempt left there stays."""
    config = folder.read_config()
    attempt = folder.start_attempt("", steps[0])
    for step in steps:
        tokens = (step + 1) * config.recipe.optim.batch
        row = {"step": step, "tokens": tokens, "flops": config.recipe.model.flops(tokens), "lr": 0.1 / 3}
        row |= {"train_loss": math.inf if step == 7 else 5 - step / 70 + attempt / 3, "grad_norm": math.nan}
        row |= {"val_loss": 4.1 - step / 300} if step % 50 == 49 else {}
        folder.append_metrics(row | {"attempt": attempt})
    if verdict is not None:
        record = final_record(
            config,
            point_id=config.run_id,
            tokens=config.recipe.tokens,
            loss=22 / 7,
            verdict=verdict,
            bits_per_byte=1 / 3,
            unique_tokens=20_000,
            validation_sets={
                "web": {"loss": 22 / 7, "bits_per_byte": 1 / 3},
                "code": {"loss": 8 / 3, "bits_per_byte": 1 / 7},
            },
            flags=["undertuned", "short"],
        )
        folder.write_point(record | {"flops_logged": 1e9 / 7})
    for earlier in list((folder.path / "wandb").glob("offline-run-*")):
        earlier.rename(earlier.with_name("earlier"))
    story = story_of(folder)
    told = WandbRun(folder.path, story, OURS)
    told.hand_over(story.rows)
    told.finish(story.summary)


def _theirs(folder: Path) -> None:
    """Runs of somebody else's names, one of which failed."""
    import wandb

    folder.mkdir()
    for number, code in ((1, 0), (2, 0), (3, 1)):
        config = {"model": {"n_params": 10**8 * number}, "lr": 1e-3, "tokens": 7, "loss": "cross_entropy"}
        run = wandb.init(project="other", group="g", id=f"x{number}", dir=str(folder), mode="offline", config=config)
        for step in range(1, 6):
            run.log({"seen": step * 10**9, "train/loss": 5 - step / 10})
        run.log({"seen": 5 * 10**9, "val/loss": 4 - number / 10})
        run.finish(exit_code=code)


def _same(one: Tables, two: Tables) -> None:
    pd.testing.assert_frame_equal(one.points, two.points, check_exact=True)
    pd.testing.assert_frame_equal(one.curves, two.curves, check_exact=True)


def _mirrors(root: Path) -> list[Path]:
    return sorted((root / "s").rglob("*.wandb"), key=lambda path: path.stat().st_size)


# files


def test_mirrored_runs_give_what_their_folders_give_to_the_last_digit(offline: Path) -> None:
    folders, mirrors = read_runs(offline, ["s"]), read_offline([offline / "s"])
    _same(folders, mirrors)
    assert len(mirrors.points) == 1 and len(mirrors.curves) == STEPS - 1  # one row has no finite loss
    assert mirrors.excluded == folders.excluded and "no final record" in mirrors.excluded[0].reason
    assert mirrors.points["flags"].tolist() == ["undertuned;short"]
    assert mirrors.points[["val_loss_code", "bits_per_byte_web"]].values.tolist() == [[8 / 3, 1 / 3]]


def test_other_peoples_runs_are_read_by_the_names_they_chose(offline: Path) -> None:
    tables = read_offline([offline / "theirs"], THEIRS)
    points = tables.points.set_index("run_id")
    assert points["params_total"].tolist() == [1e8, 2e8, 3e8] and points["tokens"].tolist() == [5e9] * 3
    assert points["loss"].tolist() == pytest.approx([3.9, 3.8, 3.7], abs=1e-15) and points["lr"].tolist() == [1e-3] * 3
    assert points["verdict"].tolist() == ["done", "done", "unfinished: its W&B run is failed with exit code 1"]
    assert points["sweep"].tolist() == ["g"] * 3 and points["point_id"].tolist() == ["x1", "x2", "x3"]
    curve = tables.curves[tables.curves["run_id"] == "x2"]
    assert curve["tokens"].tolist() == [1e9, 2e9, 3e9, 4e9, 5e9, 5e9]
    assert curve["train_loss"].tolist()[:5] == pytest.approx([4.9, 4.8, 4.7, 4.6, 4.5])
    assert curve["val_loss"].tolist()[-1] == pytest.approx(3.8) and curve["progress"].tolist()[-1] == 1
    with pytest.raises(UserError, match=r"has no column params.*model\.n_params"):
        read_offline([offline / "theirs"], {"loss": "val/loss"})


def test_a_mixed_folder_keeps_ours_and_lists_the_others_or_reads_both(offline: Path) -> None:
    ours = read_offline([offline], {})
    assert len(ours.points) == 1
    assert [out.row for out in ours.excluded][:3] == ["x1", "x2", "x3"] and "has no column params" in ours.excluded[
        0
    ].reason
    both = read_offline([offline], THEIRS)
    assert len(both.points) == 4 and both.curves["run_id"].nunique() == 4
    same = both.curves["run_id"] == both.points["run_id"][0]
    _same(
        Tables(source="", points=both.points[:1][ours.points.columns], curves=both.curves[same][["step", "tokens"]]),
        Tables(source="", points=ours.points, curves=ours.curves[["step", "tokens"]]),
    )


def test_a_file_alone_and_missing_tokens_filled(offline: Path) -> None:
    (file,) = (offline / "theirs").rglob("run-x1.wandb")
    columns = {"params": "model.n_params", "flops": "seen", "loss": "val/loss"}
    tables = read_offline([file], columns | {"tokens": "lr"}, fill=Fill.none)
    assert tables.points["tokens"].tolist() == [1e-3] and tables.source == str(file)


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; name a \.wandb file"):
        read_offline([tmp_path / "none"])
    with pytest.raises(UserError, match=r"holds no \.wandb file"):
        read_offline([tmp_path])
    (tmp_path / "a.wandb").write_text("something else")
    with pytest.raises(UserError, match=r"no W&B run that can be read \(.*a\.wandb: is no \.wandb file: it does not"):
        read_offline([tmp_path])


@given(share=st.floats(0, 1), flip=st.none() | st.floats(0, 1))
def test_whatever_happened_to_a_file_its_whole_records_are_read(
    offline: Path, tmp_path_factory: pytest.TempPathFactory, share: float, flip: float | None
) -> None:
    whole = _mirrors(offline)[-1]
    rows = read_attempt(whole).rows
    raw = bytearray(whole.read_bytes())
    assert len(raw) > 2 * BLOCK and len(rows) >= 160
    raw = raw[: int(share * len(raw))]
    if flip is not None and raw:
        raw[int(flip * (len(raw) - 1))] ^= 0x10
    path = tmp_path_factory.mktemp("spoilt") / "run-spoilt.wandb"
    path.write_bytes(raw)
    found = read_attempt(path)
    assert found.faults or found.state != FINISHED or found.rows == rows
    if flip is None:
        assert found.rows == rows[: len(found.rows)] and len(found.rows) >= len(rows) * (share - 0.1)
    else:
        assert all(row in rows for row in found.rows)


def test_a_damaged_block_costs_its_own_rows_only(offline: Path, tmp_path: Path) -> None:
    sound = read_offline([offline / "s"]).curves
    for file in _mirrors(offline)[-2:]:
        (tmp_path / file.parent.name).mkdir()
        (tmp_path / file.parent.name / file.name).write_bytes(file.read_bytes())
    victim = max(tmp_path.rglob("*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    raw = bytearray(victim.read_bytes())
    raw[BLOCK + 5000] ^= 0xFF
    victim.write_bytes(raw)
    tables = read_offline([tmp_path])
    (told,) = tables.excluded
    assert told.row == str(victim) and "is damaged at byte" in told.reason and "the rest was read" in told.reason
    kept = tables.curves["step"].tolist()
    assert len(tables.points) == 1 and STEPS - 150 < len(kept) < STEPS
    assert set(kept) < set(sound["step"]) and kept == sorted(kept)


# the server


@dataclass
class FakeRun:
    """The parts of wandb.apis.public.Run that are used."""

    id: str
    config: dict[str, Any]
    summary_metrics: dict[str, Any]
    history: list[dict[str, Any]]
    state: str = "finished"
    name: str | None = None
    group: str | None = None
    refusals: int = 0
    why: str = "HTTP 429: rate limit exceeded"
    job_type: str = "train"
    created_at: str = "2026-01-01"
    handed_out: int = 0

    @property
    def history_keys(self) -> dict[str, Any]:
        return {"lastStep": len(self.history) - 1}

    def scan_history(
        self, keys: list[str] | None = None, page_size: int = 1000, min_step: int = 0
    ) -> Iterator[dict[str, Any]]:
        assert keys is None  # with keys, the server leaves out rows that lack one
        for number, row in enumerate(self.history[min_step:]):
            self.handed_out += 1
            if number == 3 and self.refusals:
                self.refusals -= 1
                raise ConnectionError(self.why)
            yield dict(row)


class FakeApi:
    """The parts of wandb.Api that are used."""

    def __init__(self, *runs: FakeRun, refusals: int = 0, why: str = "HTTP 503 (Service Unavailable)") -> None:
        self.listed, self.refusals, self.why, self.asked = runs, refusals, why, []

    def runs(self, path: str, filters: dict[str, Any] | None = None, lazy: bool = True) -> Iterator[FakeRun]:
        self.asked.append((path, filters, lazy))
        for run in self.listed:
            if self.refusals:
                self.refusals -= 1
                raise ConnectionError(self.why)
            yield run


def _served(root: Path) -> list[FakeRun]:
    """The mirrored runs as W&B's server has them: one history, rows logged twice where an attempt resumed."""
    runs = []
    for folder in map(RunFolder, sorted((root / "s").iterdir())):
        lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
        history = [{k: v for k, v in row.items() if k != "attempt"} | {"_step": i} for i, row in enumerate(lines)]
        summary: dict[str, Any] = {"_runtime": 3}
        state = "running"
        if points := folder.points():
            summary, state = summary | summary_of(points), "finished"
        runs.append(FakeRun(folder.run_id, dict(story_of(folder).config), summary, history, state))
    return runs


def test_the_fakes_have_the_signatures_of_the_client() -> None:
    from wandb.apis.public import Api, Run

    for fake, real in ((FakeApi.runs, Api.runs), (FakeRun.scan_history, Run.scan_history)):
        assert set(inspect.signature(fake).parameters) <= set(inspect.signature(real).parameters)
    assert all(hasattr(Run, name) for name in ("config", "summary_metrics", "state", "name", "id"))


def test_a_project_gives_what_the_folders_give(offline: Path) -> None:
    runs = _served(offline)
    api = FakeApi(*runs, runs[0])  # a page that shifts under the reader lists a run twice
    tables = read_project("lab/study", group="s", api=api)
    folders = read_runs(offline, ["s"])
    _same(folders, tables)
    assert tables.excluded == folders.excluded and tables.source == "W&B project lab/study, group s"
    assert api.asked == [("lab/study", {"group": "s"}, False)]


def test_a_busy_server_is_asked_again_after_longer_and_longer_pauses(offline: Path) -> None:
    runs = _served(offline)
    runs[0].refusals = 2
    slept: list[float] = []
    tables = read_project("lab/study", api=FakeApi(*runs, refusals=1), sleep=slept.append)
    _same(read_runs(offline, ["s"]), tables)
    assert slept == [PAUSES[0], PAUSES[0], PAUSES[1]] and sorted(PAUSES) == list(PAUSES)


def test_a_run_that_is_not_handed_out_is_listed(offline: Path) -> None:
    runs = _served(offline)
    finished = next(run for run in runs if run.state == "finished")
    finished.refusals, finished.why = 1, "permission denied"
    slept: list[float] = []
    tables = read_project("lab/study", api=FakeApi(*runs), sleep=slept.append)
    assert tables.points.empty and slept == []
    assert (finished.id, "W&B does not hand it out: ConnectionError: permission denied") in [
        (out.row, out.reason) for out in tables.excluded
    ]


def test_a_project_that_cannot_be_read_is_the_users_error() -> None:
    api = FakeApi(FakeRun("a", {}, {}, []), refusals=1, why="Could not find project lab/study")
    with pytest.raises(UserError, match=r"W&B project lab/study cannot be read \(.*Could not find.*wandb login"):
        read_project("lab/study", api=api)
    with pytest.raises(UserError, match="holds no W&B run that can be read; name another"):
        read_project("lab/study", api=FakeApi())


def _changed(run: FakeRun, run_id: str, **changes: Any) -> FakeRun:
    run.id, run.config = run_id, run.config | {EXACT: json.dumps(json.loads(run.config[EXACT]) | changes)}
    return run


def test_edited_and_newer_runs_of_ours_are_listed(offline: Path) -> None:
    edited = _changed(_served(offline)[0], "another")
    newer = _changed(_served(offline)[0], "newer", schema=99)
    garbled = _changed(_served(offline)[0], "garbled", recipe={"model": 3})
    torn = _served(offline)[0]
    torn.id, torn.config = "torn", {EXACT: "{"}
    tables = read_project("study", api=FakeApi(edited, newer, garbled, torn))
    reasons = {out.row: out.reason for out in tables.excluded}
    assert set(reasons) == {"another", "newer", "garbled", "torn"} and tables.points.empty
    assert "not the W&B run's" in reasons["another"] and "newer isoflop" in reasons["newer"]
    assert "lacks or garbles" in reasons["garbled"] and "lacks or garbles" in reasons["torn"]


def test_final_values_that_somebody_edited_count_as_none(offline: Path) -> None:
    run = next(run for run in _served(offline) if run.state == "finished")
    for edited in ("no json", "[3]", '[{"point_id": 3}]', 7, None):
        run.summary_metrics["points"] = edited
        assert read_project("study", api=FakeApi(run)).points.empty


def test_a_second_reading_asks_for_what_is_new(offline: Path, tmp_path: Path) -> None:
    runs = _served(offline)
    whole = next(run for run in runs if run.state == "finished")
    rest = whole.history[250:]
    del whole.history[250:]
    read_project("lab/study", api=FakeApi(*runs), cache=tmp_path)
    asked = [run.handed_out for run in runs]
    assert asked == [len(run.history) for run in runs]
    whole.history += rest
    again = read_project("lab/study", api=FakeApi(*runs), cache=tmp_path)
    _same(read_runs(offline, ["s"]), again)
    assert sum(run.handed_out for run in runs) == sum(asked) + len(rest)
    _same(again, read_project("lab/study", api=FakeApi(*runs), cache=tmp_path))
    assert sum(run.handed_out for run in runs) == sum(asked) + len(rest)


@pytest.mark.parametrize("spoilt", ["", "{", "[]", '{"schema": 1, "created": "2026-01-01", "rows": [{}]}'])
def test_a_damaged_or_foreign_cache_is_read_anew(offline: Path, tmp_path: Path, spoilt: str) -> None:
    runs = _served(offline)
    read_project("lab/study", api=FakeApi(*runs), cache=tmp_path)
    for file in tmp_path.rglob("*.json"):
        file.write_text(spoilt)
    _same(read_runs(offline, ["s"]), read_project("lab/study", api=FakeApi(*runs), cache=tmp_path))
    for run in runs:  # deleted and made again
        run.created_at, run.handed_out = "2026-02-02", 0
    read_project("lab/study", api=FakeApi(*runs), cache=tmp_path)
    assert all(run.handed_out == len(run.history) for run in runs)


def test_fits_that_were_logged_are_no_runs(offline: Path) -> None:
    fit = FakeRun("f", {"n": 1}, {}, [], job_type="fit")
    tables = read_project("lab/study", api=FakeApi(*_served(offline), fit))
    assert "f" not in {out.row for out in tables.excluded} and len(tables.points) == 1


def test_two_runs_with_one_id_are_told_apart(offline: Path, tmp_path: Path) -> None:
    import wandb

    for project, seen in (("first", 1), ("second", 2)):
        config = {"model": {"n_params": 100}}
        run = wandb.init(project=project, id="same", dir=str(tmp_path / project), mode="offline", config=config)
        run.log({"seen": seen, "val/loss": 3.0})
        run.finish()
        time.sleep(1.0)
    tables = read_offline([tmp_path], {name: THEIRS[name] for name in ("params", "tokens", "loss")})
    assert tables.points["tokens"].tolist() == [2.0]
    told = next(out for out in tables.excluded if out.row == "same")
    assert told.reason == "two runs have this id; that of project second, begun last, was read, not that of first"


def test_importing_the_readers_does_not_import_wandb() -> None:
    import subprocess
    import sys

    code = "import sys, analysis.ingest.wandb_files, analysis.ingest.wandb_api; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

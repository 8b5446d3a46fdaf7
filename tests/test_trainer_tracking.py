from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trainer_runs import make_run, rows, small_corpus, start_training

from trainer.config import Backend, TrackingConfig, WandbMode
from trainer.loop import train
from trainer.tracking import NoTracker, Shielded, WandbTracker, open_tracker, summary_of


class Recorder:
    """A tracker that keeps what it is given, and fails in the method named."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self._fails = fails

    def log(self, row: Any) -> None:
        self._take("log", row)

    def summary(self, values: Any) -> None:
        self._take("summary", values)

    def finish(self, exit_ok: bool) -> None:
        self._take("finish", exit_ok)

    def _take(self, method: str, argument: Any) -> None:
        if method == self._fails:
            raise ConnectionError("no route\nto host")
        self.calls.append((method, argument))


class FakeRun:
    """Stands for W&B's run where only the order of calls matters."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.summary = self

    def log(self, row: Any) -> None:
        self.calls.append(("log", row))

    def update(self, values: Any) -> None:
        self.calls.append(("summary", values))

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.calls.append(("metric", (name, step_metric)))

    def finish(self, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))


@pytest.fixture
def wandb_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """W&B's own caches and settings away from the user's."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield tmp_path


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeRun, dict[str, Any]]:
    import wandb

    run, asked = FakeRun(), {}

    def init(**values: Any) -> FakeRun:
        asked.update(values)
        return run

    monkeypatch.setattr(wandb, "init", init)
    return run, asked


def mirrored(mode: WandbMode = WandbMode.offline, every: float = 0.0) -> TrackingConfig:
    return TrackingConfig(backend=Backend.wandb, mode=mode, project="study", every_seconds=every)


def test_an_offline_run_is_read_back_from_its_files(wandb_home: Path) -> None:
    corpus = small_corpus(wandb_home)
    folder = make_run(wandb_home, corpus, sweep="mirrored", tracking=mirrored())
    child = start_training(folder, wandb_home)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    (mirror,) = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    assert mirror.name == f"run-{folder.run_id}.wandb"
    content = mirror.read_bytes()
    final = folder.points()[folder.run_id]
    for text in (folder.run_id, "mirrored", "study", "train", "budget=1e+09", "val_loss", "bits_per_byte"):
        assert text.encode() in content
    for row in folder.metrics():
        assert str(row["train_loss"]).encode() in content
    assert str(final["loss"]).encode() in content
    assert not (folder.path.parent / "wandb").exists()


def test_a_run_asks_for_the_identity_that_the_folder_has(
    tmp_path: Path, fake_wandb: tuple[FakeRun, dict[str, Any]]
) -> None:
    run, asked = fake_wandb
    corpus = small_corpus(tmp_path)
    folder = make_run(tmp_path, corpus, sweep="night", tracking=mirrored())
    assert train(folder, tmp_path, job="12_3") == "done"
    assert asked["id"] == asked["name"] == folder.run_id and len(asked["id"]) <= 64
    assert (asked["group"], asked["job_type"], asked["project"]) == ("night", "train", "study")
    assert asked["resume"] == "allow" and asked["mode"] == "offline" and asked["dir"] == str(folder.path)
    assert asked["tags"] == ["budget=1e+09", f"params={folder.read_config().recipe.model.params_non_embedding:.3g}"]
    assert asked["config"] == folder.read_config().to_dict() | {"attempt": 0, "job": "12_3"}
    assert [argument for kind, argument in run.calls if kind == "metric"] == [("tokens", None), ("*", "tokens")]
    logged = [argument for kind, argument in run.calls if kind == "log"]
    assert [row["step"] for row in logged] == [row["step"] for row in folder.metrics()]
    assert [row["val_loss"] for row in logged if "val_loss" in row][-1] == folder.points()[folder.run_id]["loss"]
    summary, finish = run.calls[-2:]
    assert summary == ("summary", summary_of(folder.points()[folder.run_id])) and finish == ("finish", 0)


def test_rows_are_handed_over_at_most_so_often(tmp_path: Path, fake_wandb: tuple[FakeRun, dict[str, Any]]) -> None:
    run, _ = fake_wandb
    folder = make_run(tmp_path, "corpus", tracking=mirrored(every=0.05))
    tracker = WandbTracker(folder.path, folder.read_config(), 0, "")
    del run.calls[:]
    for step in range(3):
        tracker.log({"step": step, "val_loss": None})
    assert run.calls == []
    time.sleep(0.06)
    tracker.log({"step": 3})
    assert [row["step"] for _, row in run.calls] == [0, 1, 2, 3] and run.calls[0][1] == {"step": 0}
    tracker.log({"step": 4})
    tracker.finish(False)
    assert run.calls[-2:] == [("log", {"step": 4}), ("finish", 1)]


@pytest.mark.parametrize("fails", ["log", "summary", "finish"])
def test_a_mirror_that_fails_is_left_out_after_one_warning(fails: str) -> None:
    broken, sound = Recorder(fails), Recorder()
    both = Shielded([broken, sound])
    with pytest.warns(UserWarning, match=f"no longer mirrored, but goes on: Recorder.{fails} failed.*no route") as seen:
        both.log({"step": 1})
        both.log({"step": 2})
        both.summary({"loss": 1.0})
        both.finish(True)
    assert len(seen) == 1
    assert [kind for kind, _ in sound.calls] == ["log", "log", "summary", "finish"]


def test_training_survives_a_mirror_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def unreachable(**_: Any) -> None:
        raise wandb.errors.CommError("the server does not answer")

    monkeypatch.setattr(wandb, "init", unreachable)
    corpus = small_corpus(tmp_path)
    folder = make_run(
        tmp_path, corpus, sweep="lost", tracking=mirrored(WandbMode.online), kernels={"attention": "sdpa"}
    )
    with pytest.warns(UserWarning, match="wandb.init failed with CommError: the server does not answer"):
        assert train(folder, tmp_path) == "done"
    plain = make_run(tmp_path, corpus, sweep="plain", kernels={"attention": "sdpa"})
    train(plain, tmp_path)
    assert rows(folder) == rows(plain)


@pytest.mark.parametrize("backend", [TrackingConfig(), mirrored(WandbMode.disabled)])
def test_no_mirror_is_opened_unless_asked_for(tmp_path: Path, backend: TrackingConfig) -> None:
    folder = make_run(tmp_path, "corpus", tracking=backend)
    tracker = open_tracker(folder.path, folder.read_config(), attempt=0, job="")
    assert isinstance(tracker, NoTracker)
    tracker.log({})
    tracker.summary({})
    tracker.finish(True)
    assert not (folder.path / "wandb").exists()


def test_training_without_a_mirror_does_not_import_wandb(tmp_path: Path) -> None:
    folder = make_run(tmp_path, small_corpus(tmp_path), steps=2)
    code = "assert train(folder, root) == 'done' and 'wandb' not in sys.modules"
    child = start_training(folder, tmp_path, code)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors

"""Runs trained together as one stacked model, against the same runs one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_runs import make_run, rows, small_corpus, small_shape, wsd

from trainer.alike import alike
from trainer.config import Parametrisation, Precision
from trainer.kernels import Attention
from trainer.loop import train
from trainer.model import Transformer, initial_params
from trainer.recipe import Branch, Scaling
from trainer.runfolder import RunFolder
from trainer.shape import Activation, Positions
from trainer.stacked import StackedTransformer
from trainer.together import Together

MANUAL = {"step": "torch", "attention": "manual"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": Activation.swiglu, "tied_head": False, "qk_norm": True},
        {"positions": Positions.learned, "activation": Activation.relu2},
    ],
)
@pytest.mark.parametrize("attention", Attention)
def test_the_stacked_model_is_each_model(changes: dict[str, Any], attention: Attention) -> None:
    shape, scaling = small_shape(**changes), Scaling(rule=Parametrisation.completep, width=8, layers=1)
    flat = torch.stack([initial_params(shape, seed, scaling) for seed in range(3)])
    windows = torch.randint(256, (3, 4, shape.sequence + 1), generator=torch.Generator().manual_seed(1))
    stacked = StackedTransformer(shape, flat, attention, scaling, 1e-2)
    losses = stacked.losses(windows)
    gradients = stacked.gradient(losses.sum())
    for number in range(3):
        alone = Transformer(shape, flat[number], attention, scaling, 1e-2)
        loss = alone.loss(windows[number])
        torch.testing.assert_close(losses[number], loss, rtol=1e-6, atol=0)
        for mine, other in zip(gradients, alone.gradient(loss), strict=True):
            torch.testing.assert_close(mine[number], other, rtol=1e-4, atol=1e-5)


def go(folders: list[RunFolder], root: Path, stops: dict[int, Callable[[], str | None]] | None = None) -> list[Any]:
    """Train the folders together, a thread each; returns the verdicts, or what was raised."""
    together, verdicts = Together(len(folders)), list[Any]([None] * len(folders))

    def one(number: int) -> None:
        try:
            verdicts[number] = train(
                folders[number],
                root,
                should_stop=(stops or {}).get(number, lambda: None),
                open_engine=together.open_engine(number),
                choose=together.choose_kernels,
            )
        except Exception as error:
            verdicts[number] = error
        finally:
            together.leave(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return verdicts


def same(together: RunFolder, alone: RunFolder, rel: float) -> None:
    for mine, other in zip(rows(together), rows(alone), strict=True):
        assert (mine["step"], mine["tokens"], mine["lr"]) == (other["step"], other["tokens"], other["lr"])
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=rel)
        assert mine.keys() == other.keys()
        assert mine.get("val_loss", 0.0) == pytest.approx(other.get("val_loss", 0.0), rel=rel)
    assert together.points().keys() == alone.points().keys()
    for key, record in together.points().items():
        assert record["verdict"] == alone.points()[key]["verdict"]
        assert record["loss"] == pytest.approx(alone.points()[key]["loss"], rel=rel)


@pytest.mark.parametrize(
    ("dtype", "micro", "rel"), [(Precision.fp32, 0, 1e-5), (Precision.fp32, 4, 1e-5), (Precision.bf16, 0, 3e-3)]
)
def test_each_run_ends_as_it_would_alone(tmp_path: Path, dtype: Precision, micro: int, rel: float) -> None:
    """Seeds, rates and lengths differ; one of them is a trunk with two horizons."""
    corpus = small_corpus(tmp_path)
    varied: list[dict[str, Any]] = [
        {"seed": 0, "lr": 0.01},
        {"seed": 1, "lr": 0.02, "optim": {"guard": 6.0}},
        {"seed": 2, "lr": 0.005, "steps": 40},
        {"seed": 3, "branches": (Branch(steps=12, cooldown_steps=3),), "schedule": wsd(6)},
    ]
    common: dict[str, Any] = {"dtype": dtype, "micro_batch": micro}
    alone = [make_run(tmp_path, corpus, sweep="alone", kernels=MANUAL, **common, **one) for one in varied]
    for folder in alone:
        assert train(folder, tmp_path) == "done"
    folders = [make_run(tmp_path, corpus, sweep="together", kernels=MANUAL, **common, **one) for one in varied]
    assert go(folders, tmp_path) == ["done"] * 4
    for mine, other in zip(folders, alone, strict=True):
        same(mine, other, rel)


def test_runs_are_stopped_and_taken_up_at_different_steps(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    alone = [make_run(tmp_path, corpus, sweep="alone", seed=seed, kernels=MANUAL) for seed in range(3)]
    for folder in alone:
        train(folder, tmp_path)
    folders = [make_run(tmp_path, corpus, sweep="together", seed=seed, kernels=MANUAL) for seed in range(3)]
    asked = {number: iter(range(10**6)) for number in range(3)}
    stops = {
        number: lambda number=number, at=at: "now" if next(asked[number]) == at else None  # type: ignore[misc]
        for number, at in ((0, 5), (1, 11))
    }
    assert go(folders, tmp_path, stops) == ["stopped: now", "stopped: now", "done"]
    assert go(folders[:2], tmp_path) == ["done", "done"]
    assert [[attempt["resume_step"] for attempt in folder.attempts()] for folder in folders] == [[0, 5], [0, 11], [0]]
    for mine, other in zip(folders, alone, strict=True):
        same(mine, other, 1e-5)


def test_a_run_that_diverges_or_cannot_start_leaves_the_others_alone(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    made = {"kernels": MANUAL, "log_every": 1}
    alone = make_run(tmp_path, corpus, sweep="alone", **made)
    train(alone, tmp_path)
    fine = make_run(tmp_path, corpus, sweep="together", **made)
    wild = make_run(tmp_path, corpus, sweep="together", lr=1e30, **made)
    lost = make_run(tmp_path, "no-such-corpus", sweep="together", **made)
    verdicts = go([wild, fine, lost], tmp_path)
    assert verdicts[:2] == ["diverged", "done"] and "no-such-corpus" in str(verdicts[2])
    same(fine, alone, 1e-5)


def test_what_fails_in_the_common_step_fails_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StackedTransformer, "losses", out_of_memory)
    corpus = small_corpus(tmp_path)
    folders = [make_run(tmp_path, corpus, seed=seed, kernels=MANUAL) for seed in range(2)]
    assert [str(error) for error in go(folders, tmp_path)] == ["CUDA out of memory"] * 2
    assert {attempt["why"] for folder in folders for attempt in folder.attempts()} == {
        "exception: OutOfMemoryError: CUDA out of memory"
    }


def test_kernels_are_chosen_once_and_never_those_of_the_cpp_step(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    folders = [make_run(tmp_path, corpus, seed=seed) for seed in range(2)]
    assert go(folders, tmp_path) == ["done"] * 2
    one, two = (folder.read_config().kernels for folder in folders)
    assert one == two and one["step"] == "torch"


def test_who_may_be_trained_together(tmp_path: Path) -> None:
    first = alike(make_run(tmp_path, "c").read_config())
    assert first is not None
    assert first == alike(make_run(tmp_path, "c", seed=5, lr=0.3, steps=80).read_config())
    for other in (
        {"shape": small_shape(d_model=32)},
        {"sequences": 3},
        {"dtype": Precision.bf16},
        {"micro_batch": 2},
        {"kernels": MANUAL},
        {"kernels": {"step": "native", "chunk": 1}},
    ):
        assert alike(make_run(tmp_path, "c", sweep="other", **other).read_config()) != first  # type: ignore[arg-type]
    assert alike(make_run(tmp_path, "c", sweep="n", kernels={"step": "native", "chunk": 1}).read_config()) is None

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_runs import make_run, rows, small_corpus, small_shape

from trainer import engine, loop
from trainer.batches import eval_windows, train_batch
from trainer.config import DeviceKind, Keep, Precision
from trainer.corpus import open_corpus
from trainer.errors import MachineFault, UserError
from trainer.kernels import Attention
from trainer.loop import train
from trainer.model import Transformer, initial_params
from trainer.runfolder import RunFolder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def corpus(root: Path) -> str:
    return small_corpus(root)


def point(folder: RunFolder) -> dict[str, Any]:
    return folder.points()[folder.run_id]


def test_a_run_leaves_the_folder_the_contract_describes(root: Path, corpus: str) -> None:
    folder = make_run(root, corpus, sweep="contract")
    assert train(folder, root, job="7_3") == "done"
    config = folder.read_config()
    found = folder.metrics()
    assert [row["step"] for row in found] == [4, 9, 11, 14, 19, 23]
    assert [row["step"] for row in found if "val_loss" in row] == [11, 23]
    batch = config.recipe.optim.batch
    for row in found:
        assert row["tokens"] == (row["step"] + 1) * batch
        assert row["flops"] == config.recipe.model.flops(row["tokens"])
        assert row["tokens_per_second"] > 0 and row["attempt"] == 0 and row["grad_norm"] > 0
    assert found[-1]["lr"] > 0
    record = point(folder)
    assert record["verdict"] == "done" and record["loss"] == found[-1]["val_loss"]
    assert record["tokens"] == config.recipe.tokens and record["flops_matmul"] == config.recipe.flops()
    assert record["bits_per_byte"] == pytest.approx(record["loss"] / math.log(2))
    assert record["unique_tokens"] == record["tokens"]
    (attempt,) = folder.attempts()
    assert attempt["why"] == "done" and attempt["job"] == "7_3" and attempt["resume_step"] == 0
    assert config.kernels["step"] in ("native", "torch")
    assert {path.name for path in folder.path.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "attempts.jsonl",
        "points.jsonl",
        "checkpoints",
    }


def test_it_learns(root: Path, corpus: str) -> None:
    folder = make_run(root, corpus, sweep="learns", steps=150, sequences=16, log_every=50)
    assert train(folder, root) == "done"
    assert point(folder)["loss"] < math.log(256) - 0.5


def test_final_loss_is_that_of_a_plain_step_by_step_run(root: Path, corpus: str) -> None:
    """The same recipe once more with torch's own pieces, parameter by parameter: the loop adds nothing of its own."""
    folder = make_run(root, corpus, sweep="plain", steps=12, kernels={"attention": "sdpa"})
    train(folder, root)
    recipe = folder.read_config().recipe
    tokens = open_corpus(root, corpus)
    flat = initial_params(recipe.model, recipe.seed)
    model = Transformer(recipe.model, flat, Attention.sdpa)
    weights = list(model.tensors.values())
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": recipe.optim.weight_decay},
        {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=recipe.optim.lr, betas=(0.9, 0.95), eps=1e-8)
    for step in range(12):
        data = train_batch(tokens, seed=0, index=step, sequences=6, sequence=16)
        loss = model.loss(torch.from_numpy(data))
        for weight, gradient in zip(weights, model.gradient(loss), strict=True):
            weight.grad = gradient / (6 * 16)
        torch.nn.utils.clip_grad_norm_(weights, recipe.optim.clip)
        factor = min(1.0, (step + 1) / 4) if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 9))
        for group in adamw.param_groups:
            group["lr"] = recipe.optim.lr * factor
        adamw.step()
    held_out = torch.from_numpy(eval_windows(tokens, windows=40, sequence=16)["validation"])
    with torch.no_grad():
        expected = float(model.loss(held_out)) / (40 * 16)
    assert point(folder)["loss"] == pytest.approx(expected, rel=1e-5)


def test_micro_batches_change_the_loss_by_rounding_only(root: Path, corpus: str) -> None:
    losses = []
    for micro in (0, 4, 1):
        folder = make_run(root, corpus, sweep=f"micro{micro}", micro_batch=micro, kernels={"attention": "manual"})
        train(folder, root)
        losses.append(point(folder)["loss"])
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


def test_the_same_run_twice_is_the_same_to_the_bit_and_another_seed_is_not(root: Path, corpus: str) -> None:
    first, again, other = (
        make_run(root, corpus, sweep=name, seed=seed, dtype=Precision.bf16, kernels={"attention": "manual"})
        for name, seed in (("twice1", 0), ("twice2", 0), ("twice3", 1))
    )
    for folder in (first, again, other):
        train(folder, root)
    assert rows(first) == rows(again) and point(first)["loss"] == point(again)["loss"]
    assert rows(first) != rows(other)


def test_a_finished_run_is_left_untouched(root: Path, corpus: str) -> None:
    folder = make_run(root, corpus, sweep="finished", steps=4)
    train(folder, root)
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    assert train(folder, root) == "done"
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


@pytest.mark.parametrize("kernels", [{"attention": "manual"}, {"step": "native", "chunk": 2}], ids=["torch", "native"])
def test_stop_and_resume_give_the_run_that_never_stopped(root: Path, corpus: str, kernels: dict[str, Any]) -> None:
    whole = make_run(root, corpus, sweep=f"unstopped{len(kernels)}", kernels=kernels)
    train(whole, root)
    folder = make_run(root, corpus, sweep=f"stopped{len(kernels)}", kernels=kernels)
    for polls in (8, 5):  # one stop inside a log window, one just before its row
        left = iter([None] * polls + ["preempted"])
        assert train(folder, root, should_stop=lambda left=left: next(left)) == "stopped: preempted"  # type: ignore[misc]
    assert not folder.points()
    assert train(folder, root) == "done"
    assert [attempt["resume_step"] for attempt in folder.attempts()] == [0, 8, 13]
    assert [attempt["why"] for attempt in folder.attempts()] == ["stopped: preempted"] * 2 + ["done"]
    assert rows(folder) == rows(whole) and point(folder)["loss"] == point(whole)["loss"]


def test_kernels_are_chosen_once(root: Path, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(root, corpus, sweep="kernels")
    answers = iter([Attention.sdpa])
    monkeypatch.setattr(engine, "library", lambda _: None)
    monkeypatch.setattr(engine, "tune_attention", lambda **_: next(answers))
    stops = iter([None, "enough"])
    train(folder, root, should_stop=lambda: next(stops))
    kernels = folder.read_config().kernels
    assert kernels["attention"] == "sdpa" and kernels["torch"] == torch.__version__ and kernels["processor"]
    assert train(folder, root) == "done"
    assert folder.read_config().kernels == kernels


def test_unknown_kernels_are_refused(root: Path, corpus: str) -> None:
    folder = make_run(root, corpus, sweep="odd", kernels={"attention": "magic"})
    with pytest.raises(UserError, match=r"kernels.attention='magic' is none of manual, sdpa"):
        train(folder, root)


def test_a_loss_that_explodes_ends_the_run_as_diverged(root: Path, corpus: str) -> None:
    folder = make_run(root, corpus, sweep="explodes", lr=1e18, steps=60)
    assert train(folder, root) == "diverged"
    record = point(folder)
    assert record["loss"] is None and 0 < record["tokens"] < record["horizon"]
    assert folder.attempts()[-1]["why"].startswith("diverged: ")
    assert train(folder, root) == "diverged"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_the_run_at_the_next_row(
    root: Path, corpus: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(root, corpus, sweep=f"gradient{bad}", steps=20, kernels={"attention": "manual"})
    calls = iter(range(1000))
    gradient = Transformer.gradient

    def broken(self: Transformer, loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, *rest = gradient(self, loss)
        return (first * bad if next(calls) == 6 else first, *rest)

    monkeypatch.setattr(Transformer, "gradient", broken)
    assert train(folder, root) == "diverged"
    assert folder.metrics()[-1]["step"] == 9 and folder.metrics()[-1]["train_loss"] is None
    assert folder.attempts()[-1]["why"] == "diverged: train_loss is nan at step 9"


def test_a_loss_far_above_guessing_for_long_is_divergence(root: Path, corpus: str) -> None:
    folder = make_run(root, corpus, sweep="high", lr=30.0, steps=60, log_every=2)
    assert train(folder, root) == "diverged"
    assert "ln(vocabulary) + 1" in folder.attempts()[-1]["why"]
    assert all(math.isfinite(row["train_loss"]) for row in folder.metrics())
    assert folder.metrics()[-1]["step"] + 1 >= 3 + 2 * (loop.HIGH_ROWS - 1)


@pytest.mark.parametrize(("keep", "left"), [(Keep.none, 0), (Keep.last, 1), (Keep.all, 2)])
def test_checkpoints_are_kept_by_policy(root: Path, corpus: str, keep: Keep, left: int) -> None:
    folder = make_run(root, corpus, sweep=f"keep_{keep}", steps=6, keep=keep, checkpoint_seconds=0.0)
    train(folder, root)
    assert len(list(folder.checkpoints.glob("*"))) == left


def test_an_exception_is_recorded_and_passed_on(root: Path, corpus: str) -> None:
    folder = make_run(root, corpus, sweep="raises")

    def interrupt() -> None:
        raise KeyboardInterrupt

    def fail() -> None:
        raise RuntimeError("first line\nlast line")

    for stop, kind, why in (
        (interrupt, KeyboardInterrupt, "exception: KeyboardInterrupt"),
        (fail, RuntimeError, "exception: RuntimeError: last line"),
    ):
        with pytest.raises(kind):
            train(folder, root, should_stop=stop)  # type: ignore[arg-type]
        assert folder.attempts()[-1]["why"] == why
    assert not folder.points()


def test_a_full_disk_is_a_machine_fault_and_costs_only_time(
    root: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_run(root, corpus, sweep="roomy", kernels={"attention": "manual"})
    train(whole, root)
    folder = make_run(root, corpus, sweep="full", kernels={"attention": "manual"}, checkpoint_seconds=0.0)
    save = loop.checkpoint.save
    calls = iter(range(100))

    def full(*args: Any, **values: Any) -> str:
        if next(calls) == 7:
            raise MachineFault("cannot write x: the disk is full.")
        return save(*args, **values)

    monkeypatch.setattr(loop.checkpoint, "save", full)
    with pytest.raises(MachineFault, match="disk is full"):
        train(folder, root)
    assert folder.attempts()[-1]["why"].startswith("exception: MachineFault: cannot write")
    assert train(folder, root) == "done"
    assert folder.attempts()[-1]["resume_step"] == 7
    assert rows(folder) == rows(whole)


def test_a_machine_without_cuda_leaves_the_run_to_another(root: Path, corpus: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    folder = make_run(root, corpus, sweep="cuda", device=DeviceKind.cuda)
    with pytest.raises(MachineFault, match=r"device.kind=cuda.*choose device=cpu"):
        train(folder, root)
    assert not folder.attempts() and not folder.points()


def test_a_corpus_that_does_not_fit_is_the_users_error(root: Path, corpus: str) -> None:
    with pytest.raises(UserError, match=r"model.vocabulary=100 is less than the 256 tokens"):
        train(make_run(root, corpus, sweep="small", shape=small_shape(vocabulary=100)), root)
    with pytest.raises(UserError, match="corpus other is not at"):
        train(make_run(root, "other", sweep="absent"), root)


def test_an_unresolved_dtype_is_refused(root: Path, corpus: str) -> None:
    with pytest.raises(UserError, match=r"model.dtype=auto is not resolved"):
        train(make_run(root, corpus, sweep="auto", dtype=Precision.auto), root)


def test_an_edited_recipe_is_refused_before_anything_is_written(root: Path, corpus: str) -> None:
    folder = make_run(root, corpus, sweep="edited")
    config = folder.read_config()
    folder.write_config(replace(config, recipe=replace(config.recipe, steps=25)))
    with pytest.raises(UserError, match="so it was edited or moved"):
        train(folder, root)
    assert [path.name for path in folder.path.iterdir()] == ["config.yaml"]


def test_metrics_are_json_lines(root: Path, corpus: str) -> None:
    folder = make_run(root, corpus, sweep="lines", steps=5)
    train(folder, root)
    for name in ("metrics", "attempts", "points"):
        lines = (folder.path / f"{name}.jsonl").read_text().splitlines()
        assert lines and all(isinstance(json.loads(line), dict) for line in lines)

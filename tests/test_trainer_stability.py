"""qk-norm, z-loss, the guard, flags, and what is checked at the end of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from test_trainer_model import SHAPES, windows
from torch import Tensor
from torch.nn import functional
from trainer_runs import make_run, rows, small_corpus, small_shape

from trainer.engine import TorchEngine
from trainer.guard import LEAST, Guard
from trainer.kernels import NORM_EPS, Attention, cross_entropy
from trainer.limits import limits
from trainer.loop import train
from trainer.model import Transformer, flops_of, initial_params, slots
from trainer.recipe import Horizon, Recipe
from trainer.shape import Shape

MANUAL = {"attention": "manual"}


@given(shape=SHAPES)
def test_flops_counted_from_the_tensors_are_the_shapes(shape: Shape) -> None:
    assert flops_of(slots(shape), shape) == shape.flops_per_token()


@pytest.mark.parametrize("what", ["tokens", "flops"])
def test_a_run_that_did_not_do_what_was_planned_fails(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import loop

    folder = make_run(tmp_path, small_corpus(tmp_path), kernels=MANUAL)
    if what == "tokens":
        whole = loop.train_batch
        monkeypatch.setattr(loop, "train_batch", lambda *a, **k: whole(*a, **k)[: 5 if k["index"] == 7 else None])
    else:
        monkeypatch.setattr(loop, "flops_of", lambda *a: 1.0)
    with pytest.raises(RuntimeError, match="where the plan has"):
        train(folder, tmp_path)
    assert not folder.points() and "where the plan has" in folder.attempts()[0]["why"]


def test_z_loss_is_in_the_gradient_alone() -> None:
    logits = torch.randn(12, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * 3
    target = torch.arange(12) % 7
    exact = logits.double().requires_grad_()
    plain = functional.cross_entropy(exact, target, reduction="sum")
    (plain + 0.01 * torch.logsumexp(exact, -1).square().sum()).backward()
    ours = logits.requires_grad_()
    loss = cross_entropy(ours, target, 0.01)
    (gradient,) = torch.autograd.grad(loss, ours)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", Attention)
def test_qk_norm_makes_scores_independent_of_the_size_of_queries(path: Attention) -> None:
    shape = small_shape(qk_norm=True)
    assert shape.params_total == small_shape().params_total + 2 * 2 * shape.head_size
    flat = initial_params(shape, 0)
    model = Transformer(shape, flat, path)
    tokens = windows(shape)[:, :-1]
    before = model.logits(tokens).detach()
    with torch.no_grad():
        model.tensors["1.qkv"][: 2 * shape.attention_width] *= 7
    torch.testing.assert_close(model.logits(tokens), before, rtol=1e-3, atol=1e-4)
    q = torch.randn(2, 3, shape.attention_width, generator=torch.Generator().manual_seed(1))
    expected = functional.rms_norm(q.view(2, 3, shape.heads, -1), (shape.head_size,), eps=NORM_EPS)
    torch.testing.assert_close(model.norm_heads(q, "0.norm_q"), expected.flatten(2))


def test_they_are_hashed_only_where_they_are_on(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    plain = make_run(tmp_path, corpus).read_config()
    text = str(plain.recipe.to_dict())
    assert not any(word in text for word in ("qk_norm", "z_loss", "guard", "scaling", "branches"))
    others = [
        make_run(tmp_path, corpus, optim={"z_loss": 1e-4}),
        make_run(tmp_path, corpus, optim={"guard": 6.0}),
        make_run(tmp_path, corpus, shape=small_shape(qk_norm=True)),
    ]
    assert len({plain.run_id, *(folder.run_id for folder in others)}) == 4
    for folder in others:
        recipe = folder.read_config().recipe
        assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_with_all_of_them_on_it_trains_and_resumes(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    made: dict[str, Any] = {"shape": small_shape(qk_norm=True), "optim": {"z_loss": 1e-3, "guard": 6.0}}
    made |= {"steps": 90, "lr": 0.003}
    unbroken = make_run(tmp_path, corpus, sweep="unbroken", **made)
    assert train(unbroken, tmp_path) == "done"
    assert unbroken.read_config().kernels["step"] == "torch"  # the C++ step knows neither
    folder = make_run(tmp_path, corpus, sweep="stopped", **made)
    asked = iter(range(10**6))
    train(folder, tmp_path, should_stop=lambda: "now" if next(asked) == 70 else None)
    assert train(folder, tmp_path) == "done"
    assert rows(folder) == rows(unbroken)


def spoilt(monkeypatch: pytest.MonkeyPatch, *steps: int, factor: float = 1e3) -> None:
    """Gradients of some updates are far too large."""
    plain, count = TorchEngine.gradient, iter(range(10**6))

    def gradient(self: TorchEngine, batch: Tensor) -> Tensor:
        loss = plain(self, batch)
        if next(count) in steps:
            self.optimizer.gradient.mul_(factor)
        return loss

    monkeypatch.setattr(TorchEngine, "gradient", gradient)


def test_the_guard_skips_a_spike_and_records_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, LEAST + 8, factor=1e3)
    made: dict[str, Any] = {"steps": LEAST + 20, "lr": 0.003, "kernels": {"step": "torch", **MANUAL}, "log_every": 1}
    folder = make_run(tmp_path, small_corpus(tmp_path), optim={"guard": 8.0}, **made)
    assert train(folder, tmp_path) == "done"
    noted = [skip for row in folder.metrics() for skip in row.get("skipped", ())]
    assert [skip["step"] for skip in noted] == [LEAST + 8]
    assert noted[0]["grad_norm"] > 100 and noted[0]["reason"].startswith("grad_norm ")
    assert "skipped_updates" in folder.points()[folder.run_id]["flags"]


def test_an_update_that_is_not_finite_is_skipped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, 3, factor=math.nan)
    kernels = {"step": "torch", **MANUAL}
    corpus = small_corpus(tmp_path)
    guarded = make_run(tmp_path, corpus, optim={"guard": 6.0}, kernels=kernels, log_every=1)
    assert train(guarded, tmp_path) == "done"
    assert [skip["reason"] for row in guarded.metrics() for skip in row.get("skipped", ())] == ["grad_norm is nan"]
    spoilt(monkeypatch, 3, factor=math.nan)
    bare = make_run(tmp_path, corpus, kernels=kernels, log_every=1)
    assert train(bare, tmp_path) == "diverged"


def test_a_run_of_which_nothing_is_left_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt(monkeypatch, *range(5, 100), factor=math.inf)
    kernels = {"step": "torch", **MANUAL}
    folder = make_run(tmp_path, small_corpus(tmp_path), optim={"guard": 6.0}, kernels=kernels, steps=60)
    assert train(folder, tmp_path) == "diverged"
    assert "the guard skipped" in folder.attempts()[0]["why"]


def test_a_new_level_is_accepted_in_the_end() -> None:
    guard = Guard()
    for step in range(200):
        assert guard.judge(6.0, 2.0 + 0.01 * (step % 7), 1.0 + 0.01 * (step % 5)) is None
    judged = [guard.judge(6.0, 4.0, 1.0) is not None for _ in range(20)]
    assert judged[0] and not judged[-1] and guard.skipped == sum(judged)


def test_flags_of_points_that_optimisation_limits() -> None:
    def horizon(steps: int) -> Horizon:
        return Horizon(point_id="r", steps=steps, cooldown_steps=0, tokens=steps, trunk=0, before=0)

    assert limits(horizon(1000), [(500, 3.0), (850, 2.04), (1000, 2.0)], {}) == []
    assert limits(horizon(1000), [(500, 3.0), (850, 2.2), (1000, 2.0)], {"skipped": 2}) == [
        "still_falling",
        "skipped_updates",
    ]
    assert limits(horizon(100), [(100, 2.0)], {}) == ["few_steps"]

"""The C++ step against autograd over the same formulas, and what happens where it cannot be had."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from trainer_runs import make_run, small_corpus, small_shape

from trainer import engine
from trainer.config import Parametrisation, Precision
from trainer.errors import UserError
from trainer.kernels import Attention
from trainer.loop import train
from trainer.model import Transformer, initial_params, slots
from trainer.native import build
from trainer.native.model import NativeTransformer
from trainer.recipe import Scaling
from trainer.shape import Activation, Positions, Shape

NEEDS = pytest.mark.skipif(build.library("fp64") is None, reason="no C++ compiler on this machine")
NEEDS_BF16 = pytest.mark.skipif(build.library("bf16") is None, reason="no C++ compiler, or no AVX512_BF16, here")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def corpus(root: Path) -> str:
    return small_corpus(root)


def reference(shape: Shape, flat: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient by autograd in fp64, written from the definitions."""
    flat = flat.double().requires_grad_()
    w, offset = {}, 0
    for slot in slots(shape):
        w[slot.name] = flat[offset : offset + slot.params].view(slot.size)
        offset += slot.params
    tokens, targets = windows[:, :-1], windows[:, 1:]
    batch, length = tokens.shape

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain

    def heads(x: Tensor) -> Tensor:
        return x.view(batch, length, shape.heads, shape.head_size).transpose(1, 2)

    def turned(x: Tensor) -> Tensor:
        if shape.positions is Positions.learned:
            return x
        rates = 10_000.0 ** (-torch.arange(0, shape.head_size, 2).double() / shape.head_size)
        angle = torch.outer(torch.arange(length).double(), rates)
        one, two = x[..., 0::2], x[..., 1::2]
        pair = one * angle.cos() - two * angle.sin(), one * angle.sin() + two * angle.cos()
        return torch.stack(pair, -1).flatten(-2)

    x = w["embedding"][tokens]
    if shape.positions is Positions.learned:
        x = x + w["positions"][:length]
    for layer in range(shape.layers):
        q, k, v = (norm(x, w[f"{layer}.norm_attention"]) @ w[f"{layer}.qkv"].T).chunk(3, -1)
        scores = turned(heads(q)) @ turned(heads(k)).transpose(-1, -2) / math.sqrt(shape.head_size)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        mixed = (scores.softmax(-1) @ heads(v)).transpose(1, 2).flatten(2)
        x = x + mixed @ w[f"{layer}.attention_out"].T
        inner = norm(x, w[f"{layer}.norm_ffw"]) @ w[f"{layer}.ffw_in"].T
        if shape.activation is Activation.gelu:
            active = functional.gelu(inner)
        elif shape.activation is Activation.relu2:
            active = inner.relu().square()
        else:
            gate, value = inner.chunk(2, -1)
            active = functional.silu(gate) * value
        x = x + active @ w[f"{layer}.ffw_out"].T
    logits = norm(x, w["norm_out"]) @ w["embedding" if shape.tied_head else "head"].T
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return loss.detach(), torch.autograd.grad(loss, flat)[0]


def case(shape: Shape, *, sequences: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Parameters away from their start (gains are no longer one), and windows."""
    generator = torch.Generator().manual_seed(seed)
    flat = initial_params(shape, seed).double()
    flat += 0.1 * torch.randn(flat.shape, generator=generator, dtype=torch.float64)
    return flat, torch.randint(shape.vocabulary, (sequences, shape.sequence + 1), generator=generator)


def native(
    shape: Shape, flat: Tensor, windows: Tensor, precision: str, *, chunk: int = 2, threads: int = 1
) -> tuple[Tensor, Tensor]:
    model = NativeTransformer(shape, flat, precision, chunk=chunk, threads=threads)
    out = torch.full_like(flat, math.nan)
    return model.gradient(windows, out), out


SHAPES = st.builds(
    small_shape,
    layers=st.integers(1, 3),
    d_model=st.integers(1, 40),
    heads=st.integers(1, 3),
    head_size=st.sampled_from([2, 6, 8, 16, 18, 34]),
    ffw=st.integers(1, 70),
    vocabulary=st.integers(2, 80),
    sequence=st.integers(1, 140),
    activation=st.sampled_from(Activation),
    positions=st.sampled_from(Positions),
    tied_head=st.booleans(),
)


@NEEDS
@given(shape=SHAPES, sequences=st.integers(1, 5), chunk=st.integers(1, 3), threads=st.integers(1, 2))
@settings(max_examples=30)
def test_loss_and_gradient_are_those_of_autograd(shape: Shape, sequences: int, chunk: int, threads: int) -> None:
    flat, windows = case(shape, sequences=sequences)
    loss, gradient = reference(shape, flat, windows)
    found, mine = native(shape, flat, windows, "fp64", chunk=chunk, threads=threads)
    assert float(found) == pytest.approx(float(loss), rel=1e-12)
    assert (mine - gradient).abs().max() <= 1e-10 * gradient.abs().max()


@NEEDS
@pytest.mark.parametrize("activation", Activation)
def test_fp32_is_right_to_rounding(activation: Activation) -> None:
    shape = small_shape(d_model=48, heads=3, head_size=16, ffw=100, sequence=130, activation=activation)
    flat, windows = case(shape, sequences=3)
    loss, gradient = reference(shape, flat, windows)
    found, mine = native(shape, flat.float(), windows, "fp32")
    assert float(found) == pytest.approx(float(loss), rel=1e-6)
    assert (mine - gradient).norm() <= 3e-6 * gradient.norm()


@NEEDS_BF16
@pytest.mark.parametrize("activation", Activation)
def test_bf16_is_as_near_as_its_eight_bits_allow(activation: Activation) -> None:
    shape = small_shape(d_model=48, heads=3, head_size=16, ffw=100, sequence=130, activation=activation)
    flat, windows = case(shape, sequences=3)
    loss, gradient = reference(shape, flat, windows)
    found, mine = native(shape, flat.float(), windows, "bf16")
    assert float(found) == pytest.approx(float(loss), rel=1e-3)
    assert (mine - gradient).norm() <= 0.03 * gradient.norm()


@NEEDS
def test_a_loss_alone_is_the_loss_of_the_gradient() -> None:
    shape = small_shape()
    flat, windows = case(shape, sequences=5)
    model = NativeTransformer(shape, flat, "fp64", chunk=2, threads=1)
    assert float(model.loss(windows)) == float(model.gradient(windows, torch.empty_like(flat)))


@NEEDS
def test_the_same_twice_to_the_bit_at_any_number_of_threads() -> None:
    shape = small_shape()
    flat, windows = case(shape, sequences=7)
    for threads in (1, 2, 3):
        first, again = (native(shape, flat.float(), windows, "fp32", threads=threads) for _ in range(2))
        assert float(first[0]) == float(again[0]) and torch.equal(first[1], again[1])


@NEEDS
def test_parameters_that_are_not_numbers_show_in_the_loss() -> None:
    shape = small_shape()
    flat, windows = case(shape, sequences=2)
    assert math.isnan(float(native(shape, torch.full_like(flat, math.nan), windows, "fp64")[0]))


@NEEDS
def test_windows_that_do_not_fit_are_refused_before_memory_is_touched() -> None:
    shape = small_shape(vocabulary=100)
    model = NativeTransformer(shape, initial_params(shape, 0), "fp32", chunk=2, threads=1)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.loss(torch.full((1, 17), 100))
    with pytest.raises(ValueError, match="windows of 9 tokens, where the model takes 17"):
        model.loss(torch.zeros((1, 9), dtype=torch.int64))


@NEEDS
def test_a_run_takes_it_and_goes_on_with_it(root: Path, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_native_wins", lambda *_: True)
    folder = make_run(root, corpus, sweep="takes")
    stops = iter([None, "enough"])
    train(folder, root, should_stop=lambda: next(stops))
    kernels = folder.read_config().kernels
    assert kernels["step"] == "native" and kernels["chunk"] == 6 and kernels["torch"] and kernels["processor"]
    monkeypatch.setattr(engine, "_native_wins", lambda *_: False)
    assert train(folder, root) == "done" and folder.read_config().kernels == kernels


@NEEDS
def test_the_faster_step_is_chosen_by_trying(root: Path, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_run(root, corpus, sweep="tries", shape=small_shape(d_model=32, ffw=128, sequence=64)).read_config()
    assert engine.choose_kernels(config, torch.device("cpu"))["step"] == "native"
    plain = engine.NativeEngine.gradient
    monkeypatch.setattr(engine.NativeEngine, "gradient", lambda self, x: max(plain(self, x) for _ in range(200)))
    chosen = engine.choose_kernels(config, torch.device("cpu"))
    assert chosen["step"] == "torch" and chosen["attention"] in ("manual", "sdpa")


@NEEDS
def test_without_a_compiler_a_run_goes_on_with_torch(root: Path, corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {"step": "native", "chunk": 2}
    begun = make_run(root, corpus, sweep="begun", kernels=kernels)
    train(begun, root)
    folder = make_run(root, corpus, sweep="bare", kernels=kernels)
    stops = iter([None] * 9 + ["moved to a machine without"])
    train(folder, root, should_stop=lambda: next(stops))
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    build.library.cache_clear()
    try:
        assert train(folder, root) == "done"
    finally:
        build.library.cache_clear()
    assert folder.read_config().kernels["step"] == "torch"
    (one,), (two,) = begun.points().values(), folder.points().values()
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


@pytest.mark.parametrize("kernels", [{"step": "magic"}, {"step": "native", "chunk": "2"}])
def test_kernels_that_do_not_exist_are_refused(root: Path, corpus: str, kernels: dict[str, Any]) -> None:
    folder = make_run(root, corpus, sweep=f"odd{len(kernels)}", kernels=kernels)
    with pytest.raises(UserError, match=r"kernels.step='\w+' is none of native \(with a chunk\) and torch; restore it"):
        train(folder, root)


@NEEDS
def test_it_is_compiled_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = tmp_path / "calls"
    compiler = tmp_path / "g++"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {shutil.which("g++") or shutil.which("c++")} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    first = build._compiled(str(compiler), "fp32")
    assert build._compiled(str(compiler), "fp32") == first
    assert calls.read_text().count("step.cpp") == 1
    assert [path.name for path in (tmp_path / "isoflop").iterdir()] == [first.name]


def test_what_does_not_compile_or_is_switched_off_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    try:
        monkeypatch.setattr(build, "FLAGS", ("-not-an-option",))
        assert build.library("fp32") is None
        monkeypatch.undo()
        build.library.cache_clear()
        monkeypatch.setenv(build.SWITCH, "0")
        assert build.library("fp32") is None
    finally:
        build.library.cache_clear()


@NEEDS_BF16
def test_bf16_ends_where_fp32_does(root: Path, corpus: str) -> None:
    losses = {}
    for dtype in (Precision.fp32, Precision.bf16):
        shape = small_shape(d_model=32, heads=2, head_size=16, ffw=128)
        folder = make_run(
            root, corpus, sweep="same", shape=shape, dtype=dtype, steps=150, sequences=16,
            kernels={"step": "native", "chunk": 16},
        )  # fmt: skip
        assert train(folder, root) == "done"
        losses[dtype] = next(iter(folder.points().values()))["loss"]
    assert losses[Precision.bf16] == pytest.approx(losses[Precision.fp32], abs=0.005)


@NEEDS
@pytest.mark.parametrize("rule", [Parametrisation.mup, Parametrisation.completep])
@pytest.mark.parametrize("tied", [True, False])
def test_scales_and_z_loss_are_those_of_the_torch_model(rule: Parametrisation, tied: bool) -> None:
    shape, scaling = small_shape(tied_head=tied), Scaling(rule=rule, width=8, layers=1)
    flat, windows = case(shape, sequences=4)
    flat = flat.float()
    usual = Transformer(shape, flat, Attention.manual, scaling, 0.01)
    loss = usual.loss(windows)
    wanted = torch.cat([part.flatten() for part in usual.gradient(loss)])
    model = NativeTransformer(shape, flat, "fp32", chunk=2, threads=1, scaling=scaling, z_loss=0.01)
    found = torch.empty_like(flat)
    assert float(model.gradient(windows, found)) == pytest.approx(loss.item(), rel=1e-6)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    without = torch.empty_like(flat)
    NativeTransformer(shape, flat, "fp32", chunk=2, threads=1).gradient(windows, without)
    assert (without - wanted).norm() > 0.01 * wanted.norm()

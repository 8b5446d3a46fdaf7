"""Samples: the decoder is the model, draws keep to their rules, and the commands say what they cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Answer
from trainer_runs import small_shape

from trainer.errors import UserError
from trainer.kernels import Attention
from trainer.model import Transformer, initial_params
from trainer.sample import Decoder, Drawing, draw, generate, texts
from trainer.shape import Activation, Positions
from trainer.text.vocabulary import Bytes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": True},
        {"activation": Activation.swiglu, "tied_head": False},
        {"positions": Positions.learned, "heads": 4},
    ],
)
def test_the_decoder_is_the_model(changes: dict[str, object]) -> None:
    shape = small_shape(**changes)
    flat = initial_params(shape, 3)
    tokens = torch.randint(0, 256, (16,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        whole = Transformer(shape, flat, Attention.sdpa).logits(torch.tensor([tokens]))
    decoder = Decoder(shape, flat)
    pieces = [tokens[:5], *([token] for token in tokens[5:12]), tokens[12:]]
    read = 0
    for piece in pieces:
        read += len(piece)
        torch.testing.assert_close(decoder.logits(piece), whole[read - 1], atol=2e-5, rtol=1e-5)


def test_a_text_longer_than_the_context_goes_on_from_its_last_half() -> None:
    shape = small_shape()
    flat = initial_params(shape, 3)
    tokens = list(range(40))
    decoder = Decoder(shape, flat)
    for token in tokens[:16]:
        decoder.logits([token])
    fresh = Decoder(shape, flat).logits(tokens[9:17])
    torch.testing.assert_close(decoder.logits([tokens[16]]), fresh)
    torch.testing.assert_close(Decoder(shape, flat).logits(tokens), Decoder(shape, flat).logits(tokens[-8:]))


def test_draws_keep_to_their_rules() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0, -5.0])
    generator = torch.Generator().manual_seed(0)

    def drawn(**rules: float) -> set[int]:
        return {draw(logits, Drawing(**rules), generator) for _ in range(400)}  # type: ignore[arg-type]

    assert drawn(temperature=0) == {1}
    assert drawn(temperature=1e-310) == {1}
    assert drawn(top_k=2) == {1, 3}
    assert drawn(top_p=0.01) == {1}
    assert drawn(top_p=0.8) == {1, 3}  # their shares are 0.64 and 0.24
    assert {0, 1, 2, 3} <= drawn()
    counts = torch.bincount(torch.tensor([draw(logits, Drawing(), generator) for _ in range(4000)]), minlength=5)
    torch.testing.assert_close(counts / 4000, logits.softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan must be 0 or more"),
        ({"top_k": -1}, "top_k=-1 must be 0 or more"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"seed": -1}, "seed=-1 must be in"),
    ],
)
def test_rules_that_cannot_be(rules: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Drawing(**rules)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_text_and_the_end_ends_it() -> None:
    shape = small_shape()
    flat = initial_params(shape, 3)

    def text(seed: int, end: int | None = None) -> list[int]:
        return list(generate(Decoder(shape, flat), [5], Drawing(seed=seed), tokens=60, end=end))

    assert text(0) == text(0) != text(1)
    assert len(text(0)) == 60
    assert text(0, end=text(0)[20]) == text(0)[: text(0).index(text(0)[20])]


def test_a_model_that_diverged_says_nothing() -> None:
    shape = small_shape()
    flat = torch.full((shape.params_total,), float("nan"))
    for temperature in (0.0, 1.0):
        text = generate(Decoder(shape, flat), [5], Drawing(temperature=temperature), tokens=3, end=None)
        with pytest.raises(UserError, match=r"numbers that are not finite, as its run diverged"):
            list(text)


def test_bytes_are_said_when_their_character_is_whole() -> None:
    said = list(texts(iter("a雪".encode() + b"\xff" + "é".encode()[:1]), Bytes()))
    assert "".join(said) == "a雪\ufffd\ufffd"
    assert said[:4] == ["a", "", "", "雪"]


def test_the_commands(isoflop: Callable[..., Answer], tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs the extra hf")
    # A sweep of one Llama of a few thousand parameters on bytes.
    (tmp_path / "points.csv").write_text("layers,d_model,tokens\n1,16,20000\n1,16,30000\n")
    sweep = [
        "sweep=smoke", f"root={tmp_path / 'root'}", "sweep.design=points", f"sweep.points={tmp_path}/points.csv",
        "sweep.budgets=[]", "model=toy", "model.activation=swiglu", "data=zipf_facts", "data.tokens=1e6",
        "data.sequence=96", "data.eval_windows=16", "model.dtype=fp32", "optim.min_steps=1",
    ]  # fmt: skip
    plan = isoflop("plan", *sweep, "format=json")
    assert plan.code == 0, plan.err
    first, second = (row["point_id"] for row in plan.json["points"])
    absent = isoflop("export", *sweep).sentence
    assert absent.endswith("none of 2 points has a checkpoint; train them first, with trainer.keep=last.")
    assert f"point={first} has not been trained yet" in isoflop("sample", *sweep, f"point={first}").sentence
    assert isoflop("train", *sweep, f"point={first}").code == 0

    said = isoflop("export", *sweep)
    assert said.code == 0, said.err
    place = tmp_path / "root" / "smoke" / "export" / first
    assert said.out == f"{place}\n"
    assert (place / "model.safetensors").exists()
    assert "1 of 2 points have no checkpoint" in said.err
    assert "found: " in isoflop("export", *sweep, f"point={first}").err
    assert "begins no point's id" in isoflop("export", *sweep, "point=x").sentence

    sampled = isoflop("sample", *sweep, f"point={first}", "prompt=a b, (c)", "tokens=20", "seed=3")
    assert sampled.code == 0, sampled.err
    assert sampled.out.startswith("a b, (c)")
    assert sampled.out == isoflop("sample", *sweep, f"point={first}", "prompt=a b, (c)", "tokens=20", "seed=3").out
    assert "after 2" in sampled.err
    exact = "it's \\n [${HOME}] \\"
    assert isoflop("sample", *sweep, f"point={first}", f"prompt={exact}", "tokens=1").out.startswith(exact)
    assert "fits 2 points; name one" in isoflop("sample", *sweep).sentence
    assert "top_p=2.0 must be in (0, 1]" in isoflop("sample", *sweep, f"point={first}", "top_p=2").sentence
    assert "tokens=0 must be 1 or more" in isoflop("sample", *sweep, f"point={first}", "tokens=0").sentence
    assert f"point={second} has not been trained" in isoflop("sample", *sweep, f"point={second}").sentence

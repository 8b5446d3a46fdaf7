"""Exports: the same logits in transformers, whole folders, provenance, and what is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from text_files import made, texts, write_jsonl
from trainer_runs import make_run, small_corpus, small_shape

from trainer.config import DataConfig, Source
from trainer.corpus import prepare_corpus
from trainer.errors import MachineFault, UserError
from trainer.export import folder as module
from trainer.export.counterpart import halves, their_tensors, tied_there
from trainer.export.folder import export
from trainer.kernels import Attention
from trainer.loop import train
from trainer.model import Transformer, initial_params
from trainer.runfolder import RunFolder
from trainer.shape import Activation, Positions
from trainer.text.vocabulary import vocabulary_of
from trainer.weights import PointWeights, read_weights

LLAMA = {"activation": Activation.swiglu, "tied_head": False, "ffw": 40}


def trained(root: Path, corpus: str | None = None, steps: int = 12, **shape: Any) -> RunFolder:
    run = make_run(root, corpus or small_corpus(root), steps=steps, shape=small_shape(**(LLAMA | shape)))
    train(run, root)
    return run


def weights_of(run: RunFolder) -> PointWeights:
    found = read_weights(run, run.run_id)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"qk_norm": True},
        {"tied_head": True},
        {"heads": 4, "head_size": 6},  # heads times size is not the width
        {"layers": 1, "heads": 1, "head_size": 16, "sequence": 24},
    ],
)
def test_transformers_computes_the_same_logits(tmp_path: Path, shape: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("safetensors", reason="needs the extra hf")
    run = trained(tmp_path, **shape)
    weights = weights_of(run)
    place, found = export(weights, run, tmp_path, tmp_path / "out")
    assert (place, found) == (tmp_path / "out" / run.run_id, False)

    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    made_of = run.read_config().recipe.model
    assert type(model).__name__ == ("Qwen3ForCausalLM" if made_of.qk_norm else "LlamaForCausalLM")
    if made_of.qk_norm:  # the gains of a few steps are nearly alike
        assert model.state_dict()["model.layers.0.self_attn.q_norm.weight"].std() > 0
    assert sum(each.numel() for each in model.parameters()) == made_of.params_total
    tokens = torch.randint(0, 256, (3, made_of.sequence), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model(tokens).logits.flatten(0, 1)
        ours = Transformer(made_of, weights.flat, Attention.sdpa).logits(tokens)
    assert (theirs - ours).abs().max() < 1e-5
    assert ours.std() > 0.1


def test_factors_on_products_go_into_the_matrices(tmp_path: Path) -> None:
    """A tied head with a factor that lookups have not is untied there."""
    shape = small_shape(**(LLAMA | {"tied_head": True}))
    run = make_run(tmp_path, "c", shape=shape)
    weights = PointWeights(config=run.read_config(), point_id=run.run_id, tokens=0, flat=initial_params(shape, 0))
    plain = weights.tensors()
    scaled = {
        name: (replace(slot, scale=2.0) if len(slot.size) > 1 else slot, each) for name, (slot, each) in plain.items()
    }
    one, two = their_tensors(shape, plain), their_tensors(shape, scaled)
    assert tied_there(shape, plain) and not tied_there(shape, scaled)
    assert "lm_head.weight" not in one
    assert torch.equal(two["lm_head.weight"], 2 * one["model.embed_tokens.weight"])
    assert torch.equal(two["model.embed_tokens.weight"], one["model.embed_tokens.weight"])
    for name, tensor in one.items():
        if "layers" in name and tensor.ndim == 2:
            assert torch.equal(two[name], 2 * tensor), name


def test_rows_of_pairs_become_halves() -> None:
    rows = torch.arange(8.0)[:, None]
    assert halves(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_folder_says_where_it_comes_from_and_is_not_written_twice(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs the extra hf")
    run = trained(tmp_path)
    place, _ = export(weights_of(run), run, tmp_path, tmp_path / "out")
    record = run.points()[run.run_id]
    facts = json.loads((place / "isoflop.json").read_text())
    assert facts["run_id"] == run.run_id and facts["verdict"] == "done"
    assert (facts["loss"], facts["tokens"]) == (record["loss"], record["tokens"])
    card = (place / "README.md").read_text()
    assert f"| Validation loss | {record['loss']:.4f} nats per token |" in card
    assert {path.name for path in place.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "isoflop.json", "README.md",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    assert export(weights_of(run), run, tmp_path, tmp_path / "out") == (place, True)
    assert before == {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [run.run_id]


def test_an_unfinished_point_is_exported_and_replaced_when_it_is_done(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs the extra hf")
    run = make_run(tmp_path, small_corpus(tmp_path), steps=8, shape=small_shape(**LLAMA))
    left = iter([None] * 5 + ["enough"])
    train(run, tmp_path, should_stop=lambda: next(left))
    place, _ = export(weights_of(run), run, tmp_path, tmp_path / "out")
    facts = json.loads((place / "isoflop.json").read_text())
    assert (facts["verdict"], facts["loss"], facts["tokens"]) == ("unfinished", None, 5 * 96)
    train(run, tmp_path)
    assert export(weights_of(run), run, tmp_path, tmp_path / "out") == (place, False)
    assert json.loads((place / "isoflop.json").read_text())["verdict"] == "done"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [run.run_id]


def test_a_write_that_fails_leaves_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors", reason="needs the extra hf")
    run = trained(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(MachineFault, match="the disk is full"):
        export(weights_of(run), run, tmp_path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "out" / run.run_id).mkdir()
    with pytest.raises(UserError, match="is there and is no export of isoflop; choose another out="):
        export(weights_of(run), run, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"activation": Activation.gelu}, "model.activation=gelu has no counterpart"),
        ({"activation": Activation.relu2}, "model.activation=relu2 has no counterpart"),
        ({"positions": Positions.learned}, "model.positions=learned has no counterpart"),
        ({"heads": 3}, "3 heads do not divide the width 16"),
    ],
)
def test_layouts_without_a_counterpart_are_refused_by_name(tmp_path: Path, shape: dict[str, Any], said: str) -> None:
    made_of = small_shape(**(LLAMA | shape))
    run = make_run(tmp_path, "c", shape=made_of)
    weights = PointWeights(config=run.read_config(), point_id=run.run_id, tokens=0, flat=initial_params(made_of, 0))
    with pytest.raises(UserError, match=said):
        export(weights, run, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_byte_tokens_are_bytes_in_transformers_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("safetensors", reason="needs the extra hf")
    run = trained(tmp_path)
    place, _ = export(weights_of(run), run, tmp_path, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    for text in ("def f(x):\n    return x\n", "naïve ÿ 雪 🜚\t\x00", *texts(5)):
        assert tokenizer.encode(text, add_special_tokens=False) == list(text.encode())
        assert tokenizer.decode(list(text.encode())) == text


def test_a_trained_vocabulary_goes_with_the_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("safetensors", reason="needs the extra hf")
    write_jsonl(tmp_path / "a.jsonl", texts(400))
    prepared = made(path=[tmp_path / "a.jsonl"], tokenizer="bpe", vocabulary=400, held_out=0.2, out=tmp_path / "c")
    data = DataConfig(source=Source.tokens, path=str(prepared.folder), sequence=16, eval_windows=40)
    run = trained(tmp_path, prepare_corpus(data, tmp_path).id, vocabulary=400)
    place, _ = export(weights_of(run), run, tmp_path, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    text = "naïve law 雪"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_id == prepared.header.end_of_text
    assert json.loads((place / "config.json").read_text())["eos_token_id"] == prepared.header.end_of_text
    (prepared.folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"the tokenizer .*tokenizer.json is damaged; restore it"):
        export(weights_of(run), run, tmp_path, tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"the tokenizer .*tokenizer.json is no file of the tokenizers library .*; restore"
    ):
        vocabulary_of(prepared.header, prepared.folder)
    (prepared.folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"the tokenizer .*tokenizer.json cannot be read"):
        export(weights_of(run), run, tmp_path, tmp_path / "elsewhere")

"""Several validation sets: each measured over windows of its own, told in rows, record and mirror, kept by resumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from text_files import made, texts, write_jsonl
from trainer_runs import make_run, rows

from trainer import checkpoint
from trainer.batches import eval_windows
from trainer.config import DataConfig, Source
from trainer.corpus import Corpus, open_corpus, prepare_corpus
from trainer.errors import MachineFault, UserError
from trainer.kernels import Attention
from trainer.loop import train
from trainer.model import Transformer
from trainer.runfolder import RunFolder
from trainer.tracking import summary_of


def corpus_with(root: Path, name: str, **sets: int) -> Corpus:
    """A corpus under ``root`` whose sets have documents of their seeds beside the share held out."""
    write_jsonl(root / "train.jsonl", texts(400))
    for each, seed in sets.items():
        write_jsonl(root / f"{each}.jsonl", texts(60, seed=seed))
    validation = {each: str(root / f"{each}.jsonl") for each in sets}
    folder = made(path=[root / "train.jsonl"], validation=validation, held_out=0.2, out=root / name).folder
    return prepare_corpus(DataConfig(source=Source.tokens, path=str(folder), sequence=16, eval_windows=40), root)


def record(folder: RunFolder) -> dict[str, Any]:
    return folder.points()[folder.run_id]


def test_every_set_is_measured_over_its_own_windows(tmp_path: Path) -> None:
    alone, many = corpus_with(tmp_path, "alone"), corpus_with(tmp_path, "many", web=5, code=6)
    one = make_run(tmp_path, alone.id, sweep="one", steps=12, kernels={"attention": "sdpa"})
    several = make_run(tmp_path, many.id, sweep="several", steps=12, kernels={"attention": "sdpa"})
    train(one, tmp_path)
    train(several, tmp_path)
    final = record(several)
    assert list(final["validation_sets"]) == ["validation", "web", "code"]
    assert final["loss"] == record(one)["loss"] == final["validation_sets"]["validation"]["loss"]
    assert "val_loss_validation" not in rows(several)[-1]

    saved = checkpoint.newest(several.checkpoints, several.run_id)
    assert saved is not None
    flat = next(value for key, value in saved.state["optimizer"].items() if key in ("master", "params"))
    model = Transformer(several.read_config().recipe.model, flat, Attention.sdpa)
    windows = eval_windows(many, windows=40, sequence=16)
    for part in many.sets:
        with torch.no_grad():
            loss = float(model.loss(torch.from_numpy(windows[part.name]))) / (40 * 16)
        measured = final["validation_sets"][part.name]
        assert measured["loss"] == pytest.approx(loss, rel=1e-6)
        assert measured["bits_per_byte"] == measured["loss"] / math.log(2) / part.bytes_per_token
        key = "val_loss" if part.name == "validation" else f"val_loss_{part.name}"
        assert rows(several)[-1][key] == measured["loss"]
    assert len({each["loss"] for each in final["validation_sets"].values()}) == 3
    assert summary_of({several.run_id: final})["val_loss_code"] == final["validation_sets"]["code"]["loss"]
    assert "val_loss_validation" not in summary_of({one.run_id: record(one)})


def test_a_run_killed_before_its_record_keeps_every_sets_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_with(tmp_path, "many", web=5)
    whole, cut = (make_run(tmp_path, corpus.id, sweep=name, steps=12) for name in ("whole", "cut"))
    train(whole, tmp_path)

    def full(*_: Any) -> None:
        raise MachineFault("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_point", full)
        with pytest.raises(MachineFault):
            train(cut, tmp_path)
    train(cut, tmp_path)
    assert record(cut)["validation_sets"] == record(whole)["validation_sets"]
    assert cut.attempts()[-1]["resume_step"] == 12


def test_a_set_that_is_too_short_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "tiny.jsonl", ["tiny"])
    write_jsonl(tmp_path / "train.jsonl", texts(400))
    sets = {"tiny": str(tmp_path / "tiny.jsonl")}
    folder = made(path=[tmp_path / "train.jsonl"], validation=sets, held_out=0.2, out=tmp_path / "c").folder
    with pytest.raises(UserError, match="the 5 validation tokens of set 'tiny' of the tokens-"):
        prepare_corpus(DataConfig(source=Source.tokens, path=str(folder), sequence=16, eval_windows=40), tmp_path)


def test_the_first_set_listed_counts_where_none_is_called_validation(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", texts(400))
    for name in ("web", "code"):
        write_jsonl(tmp_path / f"{name}.jsonl", texts(60))
    sets = {name: str(tmp_path / f"{name}.jsonl") for name in ("web", "code")}
    folder = made(path=[tmp_path / "train.jsonl"], validation=sets, out=tmp_path / "c").folder
    corpus = prepare_corpus(DataConfig(source=Source.tokens, path=str(folder), sequence=16, eval_windows=4), tmp_path)
    assert [part.name for part in open_corpus(tmp_path, corpus.id).sets] == ["web", "code"]

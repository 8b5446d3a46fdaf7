"""Text to shards and back: every form of input, splits, copies, any number of workers, kills, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from hypothesis import given, settings
from hypothesis import strategies as st
from text_files import content, documents_of, made, parts_of, texts, until, write_jsonl, write_parquet, write_saved

from trainer.config import DataConfig, Source
from trainer.corpus import open_corpus, prepare_corpus
from trainer.errors import UserError
from trainer.files import read_lines
from trainer.shards import read_header
from trainer.text.config import BadLines, ShardType
from trainer.text.records import cuttable, split, stretch
from trainer.text.vocabulary import Bytes, pieces

TEXTS = texts(300)


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


# round trips


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1), min_size=2, max_size=20, unique=True))
def test_any_text_comes_back_from_bytes(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> None:
    """Also NUL, unpaired carriage returns, and what looks like a separator."""
    folder = tmp_path_factory.mktemp("round")
    write_jsonl(folder / "a.jsonl", documents)
    write_jsonl(folder / "b.jsonl", documents[:1])
    prepared = made(path=[folder / "a.jsonl"], validation={"own": str(folder / "b.jsonl")}, out=folder / "out")
    assert parts_of(prepared.folder) == {"train": documents, "own": documents[:1]}


@given(st.text())
def test_bytes_are_utf8_and_their_end_is_none(text: str) -> None:
    tokens = Bytes().encode([text])
    assert tokens[-1] == Bytes().end_of_text
    assert bytes(tokens[:-1]) == text.encode()
    assert Bytes().decode(Bytes().prompt(text)) == text


@given(st.text(alphabet="ab\n", max_size=60), st.integers(1, 10))
def test_pieces_are_the_text(text: str, longest: int) -> None:
    found = pieces(text, longest)
    assert "".join(found) == text
    assert all(len(piece) <= longest for piece in found)


@given(
    raw=st.lists(st.sampled_from([b"a", b"b", b"\n", b"<>", b"<", b"\n\n"]), max_size=40).map(b"".join),
    separator=st.sampled_from([b"\n", b"<>", b"ab"]),
    data=st.data(),
)
def test_stretches_give_every_record_once(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, separator: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "file"
    path.write_bytes(raw)
    edges = sorted({0, len(raw), *data.draw(st.lists(st.integers(0, len(raw)), max_size=5))})
    found = [each for start, stop in itertools.pairwise(edges) for each in stretch(path, start, stop, separator)]
    assert [record for _, record in found] == raw.split(separator)[: len(found)]
    assert raw.split(separator)[len(found) :] in ([], [b""])
    assert all(raw[at : at + len(record)] == record for at, record in found)
    with path.open("rb") as stream:
        assert [each for each in split(stream, separator) if each] == [each for _, each in found if each]


def test_separators_that_may_overlap_are_not_cut_at() -> None:
    assert cuttable(b"\n")
    assert cuttable(b"<|endoftext|>")
    assert not cuttable(b"\n\n")
    assert not cuttable(b"---")


# forms of input


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.zst", "a.ndjson.bz2", "a.parquet", "saved", "files"])
def test_every_form_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / "input" / name
    path.parent.mkdir()
    if name == "saved":
        write_saved(path, TEXTS)
    elif name == "files":
        for number, text in enumerate(TEXTS):
            (path / str(number % 7)).mkdir(parents=True, exist_ok=True)
            (path / str(number % 7) / f"{number}.txt").write_bytes(text.encode())
        (path / ".hidden.txt").write_text("not this")
        (path / "settings.json").write_text("{}")
        (path / "picture.png").write_bytes(b"\x89PNG")
    elif name.endswith("parquet"):
        write_parquet(path, TEXTS)
    else:
        write_jsonl(path, TEXTS)
    prepared = made(path=[path if name == "saved" else path.parent], out=tmp_path / "out", shard_mb=0.02)
    assert documents_of(prepared.folder) == sorted(TEXTS)
    if name in ("a.jsonl", "a.parquet", "saved", "files"):
        assert len(prepared.header.shards["train"]) > 3, "large files are cut, small ones put together"


def test_files_are_parted_at_a_separator_and_kept_whole_without(tmp_path: Path) -> None:
    for suffix, raw in ((".txt", "@@".join(TEXTS).encode()), (".txt.gz", gzip.compress("@@".join(TEXTS).encode()))):
        path = tmp_path / f"all{suffix}"
        path.write_bytes(b"\xef\xbb\xbf" * (suffix == ".txt") + raw)
        prepared = made(path=[path], separator="@@", out=tmp_path / f"parted{suffix}", shard_mb=0.02)
        assert documents_of(prepared.folder) == sorted(TEXTS)
    (tmp_path / "other.txt").write_text("held out")
    whole = made(path=[tmp_path / "all.txt"], validation={"v": str(tmp_path / "other.txt")}, out=tmp_path / "whole")
    assert parts_of(whole.folder)["train"] == ["@@".join(TEXTS)]
    lines = made(path=[tmp_path / "*.txt"], separator="\\n", out=tmp_path / "lines")
    assert sum(lines.documents.values()) > 300


def test_what_is_no_utf8_is_repaired_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.jsonl").write_text('{"text": "half \\ud83d of a pair"}\n\n{"text": null}\n{"text": "whole"}\n')
    write_jsonl(tmp_path / "v.jsonl", ["v"])
    prepared = made(path=[tmp_path / "[abc].*"], validation={"v": str(tmp_path / "v.jsonl")}, out=tmp_path / "out")
    assert parts_of(prepared.folder)["train"] == ["caf\ufffd", "half \ufffd of a pair", "whole"]
    assert prepared.counts == {"empty": 2, "skipped": 0, "duplicates": 0, "repaired": 2}


# splits, copies, counts


def test_the_split_goes_by_content(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    write_jsonl(tmp_path / "b.jsonl", TEXTS[::-1] + TEXTS[:100])
    first = parts_of(made(path=[tmp_path / "a.jsonl"], held_out=0.2, out=tmp_path / "1").folder)
    second = parts_of(made(path=[tmp_path / "b.jsonl"], held_out=0.2, out=tmp_path / "2").folder)
    assert set(first["validation"]) == set(second["validation"]), "order and copies do not matter"
    assert not set(second["validation"]) & set(second["train"])
    assert 30 < len(first["validation"]) < 90
    third = parts_of(made(path=[tmp_path / "a.jsonl"], held_out=0.2, split_seed=1, out=tmp_path / "3").folder)
    assert set(first["validation"]) != set(third["validation"])


def test_copies_are_left_out_and_validation_keeps_its_own(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS + TEXTS[50:])
    write_jsonl(tmp_path / "b.jsonl", [*TEXTS[:20], "new", "new"])
    prepared = made(
        path=[tmp_path / "a.jsonl"],
        validation={"web": str(tmp_path / "b.jsonl")},
        deduplicate=True,
        shard_mb=0.02,
        out=tmp_path / "out",
    )
    parts = parts_of(prepared.folder)
    assert parts["web"] == [*TEXTS[:20], "new"]
    assert parts["train"] == TEXTS[20:]
    assert prepared.counts["duplicates"] == 250 + 20 + 1


def test_bytes_per_token_are_the_texts(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    write_jsonl(tmp_path / "b.jsonl", TEXTS[:3])
    prepared = made(
        path=[tmp_path / "a.jsonl"], validation={"v": str(tmp_path / "b.jsonl")}, held_out=0.1, out=tmp_path / "out"
    )
    held_out = parts_of(prepared.folder)["validation"]
    assert prepared.header.bytes == {
        "validation": sum(len(text.encode()) for text in held_out),
        "v": sum(len(text.encode()) for text in TEXTS[:3]),
    }
    assert prepared.header.validation_sets == ["validation", "v"]
    corpus = prepare_corpus(
        DataConfig(source=Source.tokens, path=str(prepared.folder), sequence=8, eval_windows=4), tmp_path / "root"
    )
    assert [each.name for each in corpus.sets] == ["validation", "v"]
    assert corpus.sets[1].bytes_per_token == prepared.header.bytes["v"] / prepared.header.tokens["v"]


# vocabularies


def test_a_trained_vocabulary_comes_back_and_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra hf")
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    options = {"path": [tmp_path / "a.jsonl"], "tokenizer": "bpe", "vocabulary": 400, "held_out": 0.1, "shard_mb": 0.02}
    first = made(**options, out=tmp_path / "one")
    second = made(**options, out=tmp_path / "two", workers=2)
    assert content(first.folder) == content(second.folder)
    assert (first.header.vocabulary, first.header.dtype) == (400, "uint16")
    assert documents_of(first.folder) == sorted(TEXTS), "special tokens in a text stay text"
    assert first.header.tokens["validation"] < 0.7 * first.header.bytes["validation"]

    again = made(
        path=[tmp_path / "a.jsonl"],
        tokenizer=str(tmp_path / "one"),
        held_out=0.1,
        shard_mb=0.02,
        out=tmp_path / "three",
    )
    assert content(again.folder) == content(first.folder), "an existing vocabulary is taken as it is"


def test_long_texts_are_encoded_in_pieces(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra hf")
    long = "".join(f"line {number}\n" for number in range(150_000))
    write_jsonl(tmp_path / "a.jsonl", [long, "short"])
    write_jsonl(tmp_path / "v.jsonl", ["held out"])
    prepared = made(
        path=[tmp_path / "a.jsonl"], validation={"v": str(tmp_path / "v.jsonl")}, tokenizer="bpe", vocabulary=300,
        sample_mb=0.1, out=tmp_path / "out",
    )  # fmt: skip
    assert parts_of(prepared.folder)["train"] == [long, "short"]


# workers and kills

PREPARE = """
import os, sys
from trainer.text import encode, pool
from trainer.text.config import PrepareConfig
from trainer.text.prepare import prepare

if __name__ == "__main__":
    path, out, workers = sys.argv[1:]
    config = PrepareConfig(path=path, out=out, workers=int(workers), shard_mb=0.02, held_out=0.1, deduplicate=True)
    prepare(config, lambda message, share: print(message, share, flush=True))
"""


def start(folder: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    script = folder / "prepare.py"
    script.write_text(PREPARE)
    repository = Path(__file__).resolve().parents[1]
    return subprocess.Popen(
        [sys.executable, str(script), str(folder / "a.jsonl"), str(out), str(workers)],
        env=os.environ | {"PYTHONPATH": str(repository)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_kills_and_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts(8000))
    options = {"path": [tmp_path / "a.jsonl"], "shard_mb": 0.02, "held_out": 0.1, "deduplicate": True}
    wanted = content(made(**options, out=tmp_path / "whole").folder)
    out, records = tmp_path / "killed", tmp_path / "killed.unfinished" / "units"
    kept: dict[str, int] = {}
    for enough in (2, 40):
        child = start(tmp_path, out, 2)
        until(lambda enough=enough: len(list(records.glob("*.json"))) >= enough)
        child.kill()
        child.wait()
        assert not out.exists(), "killed before it was done"
        kept = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    after = start(tmp_path, out, 2)
    said, _ = after.communicate(timeout=60)
    assert after.returncode == 0
    assert content(out) == wanted
    assert not records.exists()
    first = next(line for line in said.splitlines() if line.startswith("encoding"))
    assert float(first.split()[-1]) > 0.03, f"{len(kept)} finished units are not done again"


def test_finished_units_are_kept_and_damaged_ones_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.text import prepare as module

    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    options = {"path": [tmp_path / "a.jsonl"], "shard_mb": 0.02, "held_out": 0.1}
    wanted = content(made(**options, out=tmp_path / "whole").folder)
    units: list[int] = []
    encode = module.encode_unit

    def stop_at_five(unit: Any, work: Any, report: Any) -> None:
        if len(units) == 5:
            raise KeyboardInterrupt
        units.append(unit.number)
        encode(unit, work, report)

    monkeypatch.setattr(module, "encode_unit", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        made(**options, out=tmp_path / "out")
    work, first = tmp_path / "out.unfinished", list(units)
    os.truncate(work / "corpus" / f"train-{first[0]:05d}.bin", 10)
    (work / "units" / f"{first[1]:05d}.json").write_text("{")
    (work / "corpus" / ".train-00001.bin.aa.tmp").write_text("left by a killed worker")
    monkeypatch.setattr(module, "encode_unit", lambda *given: (units.append(given[0].number), encode(*given)))
    units.clear()
    made(**options, out=tmp_path / "out")
    assert set(first[:2]) <= set(units)
    assert not set(first[2:]) & set(units)
    assert content(tmp_path / "out") == wanted


def test_workers_end_with_whoever_started_them(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts(8000))
    child = start(tmp_path, tmp_path / "out", 2)
    until(lambda: list((tmp_path / "out.unfinished" / "units").glob("*.json")))
    below = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    if not below.exists():
        pytest.skip("the system does not list children")
    workers = [int(pid) for pid in below.read_text().split()]
    assert workers
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in workers), 20)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


# the command


def test_the_command_prepares_checks_and_trains(isoflop: Callable[..., Answer], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts(3000))
    write_jsonl(tmp_path / "b.jsonl", texts(200, seed=7))
    out = tmp_path / "corpus"
    command = ["data", "prepare", f"path={tmp_path}/a.jsonl", f"validation.web={tmp_path}/b.jsonl", "held_out=0.05",
               f"out={out}", "workers=1"]  # fmt: skip
    said = isoflop(*command, "format=json")
    assert said.code == 0, said.err
    assert said.json["documents"]["web"] == 200
    assert "written: " in said.err
    again = isoflop(*command)
    assert (again.code, "found: " in again.err) == (0, True)
    assert "web" in again.out
    assert "every byte is as" in isoflop("data", "check", f"path={out}").err

    sweep = ["sweep=smoke", f"root={tmp_path / 'root'}", "data=tokens", f"data.path={out}", "data.sequence=32",
             "data.eval_windows=50", "tracking=none"]  # fmt: skip
    plan = isoflop("plan", *sweep, "data.max_epochs=1000", "format=json")
    assert plan.code == 0, plan.err
    cheapest = min(plan.json["points"], key=lambda row: row["flops_matmul"])["point_id"]
    trained = isoflop("train", *sweep, "data.max_epochs=1000", f"point={cheapest}")
    assert trained.code == 0, trained.err
    run = tmp_path / "root" / "smoke" / cheapest
    (tmp_path / "one.txt").write_text("\n\n".join(texts(50, longest=3)))
    parted = isoflop("data", "prepare", f"path={tmp_path}/one.txt", "separator=\\n\\n", "held_out=0.3",
                     f"out={tmp_path}/parted", "format=json")  # fmt: skip
    assert sum(parted.json["documents"].values()) == 50
    (record,) = read_lines(run / "points.jsonl")
    assert set(record["validation_sets"]) == {"validation", "web"}
    assert record["loss"] == record["validation_sets"]["validation"]["loss"]
    measured = [row for row in read_lines(run / "metrics.jsonl") if "val_loss" in row]
    assert all("val_loss_web" in row for row in measured)
    assert measured[-1]["val_loss_web"] == record["validation_sets"]["web"]["loss"] != record["loss"]

    with (out / "train-00000.bin").open("r+b") as file:
        file.seek(file.seek(0, 2) // 2)
        file.write(b"zz")
    assert "the shard train-00000.bin does not hold the bytes" in isoflop("data", "check", f"path={out}").sentence


def test_a_corpus_that_was_prepared_anew_is_another(tmp_path: Path) -> None:
    """Also where only the middle of a shard differs, which is not read when a run starts."""
    root, out = tmp_path / "root", tmp_path / "corpus"
    documents = [f"{number:06d} " * 2000 for number in range(20)]
    write_jsonl(tmp_path / "v.jsonl", texts(50))
    options = {"path": [tmp_path / "a.jsonl"], "validation": {"v": str(tmp_path / "v.jsonl")}, "out": out}
    write_jsonl(tmp_path / "a.jsonl", documents)
    made(**options)
    config = DataConfig(source=Source.tokens, path=str(out), sequence=16, eval_windows=4)
    corpus = prepare_corpus(config, root)
    out.rename(tmp_path / "old")
    write_jsonl(tmp_path / "a.jsonl", [*documents[:10], documents[10].replace("0", "1"), *documents[11:]])
    made(**options)
    old, new = (tmp_path / "old" / "train-00000.bin").read_bytes(), (out / "train-00000.bin").read_bytes()
    assert (len(old), old[:4096], old[-4096:]) == (len(new), new[:4096], new[-4096:])
    sentence = refused(lambda: open_corpus(root, corpus.id))
    assert "no longer that of this corpus" in sentence
    assert f"restore the shards at {out}" in sentence
    assert prepare_corpus(config, root).id != corpus.id


# what is refused


def test_inputs_that_are_none(tmp_path: Path) -> None:
    def sentence(**options: Any) -> str:
        values = {"path": [tmp_path / "a.jsonl"], "out": tmp_path / "out"} | options
        return refused(lambda: made(**values))

    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "empty").mkdir()
    assert "path=/no/such finds no file with text" in sentence(path=["/no/such"])
    assert f"path={tmp_path / 'empty'} finds no file" in sentence(path=[tmp_path / "a.jsonl", tmp_path / "empty"])
    assert "validation.v=/no/such finds no file" in sentence(validation={"v": "/no/such"})
    assert "has no field 'content', only id, text; name the field" in sentence(field="content")
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n{"text": 3}\n')
    assert "bad.jsonl: the line at byte 17 is not JSON" in sentence(path=[tmp_path / "bad.jsonl"])
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    assert "deep.jsonl: the line at byte 0 is not JSON (maximum recursion" in sentence(path=[tmp_path / "deep.jsonl"])
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "abc"}\n' * 1000)[:40])
    assert "cut.jsonl.gz cannot be read" in sentence(path=[tmp_path / "cut.jsonl.gz"])
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    assert "a.parquet is no sound parquet file" in sentence(path=[tmp_path / "a.parquet"])
    write_parquet(tmp_path / "b.parquet", TEXTS)
    assert "b.parquet has no such column; choose one of id, text" in sentence(path=[tmp_path / "b.parquet"], field="x")
    assert "holds int64, no texts" in sentence(path=[tmp_path / "b.parquet"], field="id")
    write_saved(tmp_path / "splits" / "train", TEXTS)
    (tmp_path / "splits" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert f"name one: path={tmp_path / 'splits' / 'train'}." in sentence(path=[tmp_path / "splits"])
    (tmp_path / "b.parquet.gz").write_bytes(b"")
    assert "is a compressed parquet file" in sentence(path=[tmp_path / "b.parquet.gz"])
    assert not (tmp_path / "out").exists()


def test_a_column_that_breaks_its_promise_of_utf8_is_repaired(tmp_path: Path) -> None:
    raw = pa.array([b"one \xff", "zwölf 雪".encode(), None, b"three"], pa.binary()).view(pa.string())
    for name, texts_of in {
        "plain": raw,
        "coded": raw.dictionary_encode(),
        "view": pa.array(TEXTS, pa.string_view()),
    }.items():
        pq.write_table(pa.table({"text": texts_of}), tmp_path / f"{name}.parquet")
    options: dict[str, Any] = {"validation": {"v": str(tmp_path / "view.parquet")}}
    for name in ("plain", "coded"):
        prepared = made(path=[tmp_path / f"{name}.parquet"], out=tmp_path / name, **options)
        assert parts_of(prepared.folder) == {"train": ["one \ufffd", "zwölf 雪", "three"], "v": TEXTS}
        assert (prepared.counts["repaired"], prepared.counts["empty"]) == (1, 1)


def test_what_leaves_nothing_to_train_on_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    options: dict[str, Any] = {"path": [tmp_path / "a.jsonl"], "out": tmp_path / "out"}
    said = refused(lambda: made(**options, validation={"v": str(tmp_path / "a.jsonl")}, deduplicate=True))
    assert "none is left to train on, with held_out=0.0 and 300 that are copies" in said
    assert "none is left to train on, with held_out=0.99999" in refused(lambda: made(**options, held_out=0.99999))


def test_bad_lines_may_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n{"text": 3}\n[1]\n{"other": 1}\n')
    write_jsonl(tmp_path / "v.jsonl", ["v"])
    options = {
        "path": [tmp_path / "bad.jsonl"],
        "validation": {"v": str(tmp_path / "v.jsonl")},
        "out": tmp_path / "out",
    }
    prepared = made(**options, bad_lines=BadLines.skip)
    assert parts_of(prepared.folder)["train"] == ["good"]
    assert prepared.counts["skipped"] == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"out": ""}, "out is empty"),
        ({"path": []}, "path=[] names no input"),
        ({"held_out": 1.0}, "held_out=1.0 must be null or in [0, 1)"),
        ({"held_out": 0.0}, "held_out=0 leaves no validation set"),
        ({"held_out": 1e-9}, "held_out=1e-09 took none of 300 documents"),
        ({"validation": {"a-b": "x"}}, "validation.a-b: name a set with letters"),
        ({"validation": {"train": "x"}}, "not train"),
        ({"validation": {"validation": "x"}, "held_out": 0.1}, "both make the set validation"),
        ({"separator": ""}, "separator is empty"),
        ({"split_seed": 10**80}, "must be between -2^63 and 2^63"),
        ({"vocabulary": 100}, "vocabulary=100 must be between 257"),
        ({"shard_mb": float("nan")}, "shard_mb=nan must be 0 or more"),
        ({"tokenizer": "no/such"}, "tokenizer=no/such is neither bytes, nor bpe"),
        (
            {"dtype": ShardType.uint8, "tokenizer": "bpe", "vocabulary": 300},
            "numbers only 256 tokens, but the vocabulary",
        ),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    if options.get("tokenizer") == "bpe":
        pytest.importorskip("tokenizers", reason="needs the extra hf")
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    assert said in refused(lambda: made(**({"path": [tmp_path / "a.jsonl"], "out": tmp_path / "out"} | options)))
    assert not (tmp_path / "out").exists()


def test_tokenizers_that_are_none(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra hf")
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    path = tmp_path / "tokenizer.json"
    options = {"path": [tmp_path / "a.jsonl"], "tokenizer": str(path), "out": tmp_path / "out"}
    path.write_text("{}")
    assert "is no file of the tokenizers library" in refused(lambda: made(**options))
    path.write_bytes(b"\xff\xfe")
    assert "is no file of the tokenizers library ('utf-8' codec" in refused(lambda: made(**options))
    made_up = tokenizers.Tokenizer(tokenizers.models.WordLevel({"law": 0, "unk": 1}, unk_token="unk"))
    made_up.save(str(path))
    assert "none of the usual tokens for the end of a text" in refused(lambda: made(**options))
    assert "end_of_text=stop: " in refused(lambda: made(**options, end_of_text="stop"))


def test_work_begun_with_other_settings_is_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.text import prepare as module

    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    options = {"path": [tmp_path / "a.jsonl"], "shard_mb": 0.02, "out": tmp_path / "out"}

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            made(**options)
    sentence = refused(lambda: made(**options, held_out=0.2))
    assert "was begun with held_out=None where it is 0.2 now; set it back to go on there, or start over" in sentence
    write_jsonl(tmp_path / "a.jsonl", [*TEXTS, "more"])
    assert f"other inputs ({tmp_path / 'a.jsonl'})" in refused(lambda: made(**options))
    prepared = made(**options, held_out=0.2, fresh=True)
    assert len(documents_of(prepared.folder)) == 301
    assert "out is there, with held_out=0.2 where it is 0.3" in refused(lambda: made(**options, held_out=0.3)).replace(
        f"={tmp_path / 'out'}", ""
    )
    (tmp_path / "mine").mkdir()
    options["out"] = tmp_path / "mine"
    assert "was not made by `isoflop data prepare`" in refused(lambda: made(**options))


def test_what_a_kill_after_the_rename_left_is_cleared(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    options: dict[str, Any] = {"path": [tmp_path / "a.jsonl"], "out": tmp_path / "out"}
    made(**options)
    rest = tmp_path / "out.unfinished"
    (rest / "units").mkdir(parents=True)
    assert made(**options).found
    assert not rest.exists()


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", texts(8000))
    child = start(tmp_path, tmp_path / "out", 1)
    until(lambda: list((tmp_path / "out.unfinished" / "units").glob("*.json")))
    child.send_signal(signal.SIGSTOP)
    assert "is being prepared by another process" in refused(
        lambda: made(path=[tmp_path / "a.jsonl"], out=tmp_path / "out")
    )
    child.send_signal(signal.SIGCONT)
    child.communicate(timeout=60)
    assert child.returncode == 0


def test_prepared_folders_say_what_they_are(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    header = read_header(made(path=[tmp_path / "a.jsonl"], held_out=0.1, out=tmp_path / "out").folder)
    assert (header["tokenizer"], header["end_of_text"], header["vocabulary"]) == ("bytes", 255, 256)
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["settings"]["options"]["held_out"] == 0.1
    assert not list(tmp_path.glob("*.unfinished"))

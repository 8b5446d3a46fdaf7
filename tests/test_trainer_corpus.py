"""Corpora: what is made, where it lies, what survives kills, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer import python_source, zipf_facts
from trainer.config import DataConfig, Source
from trainer.corpus import corpus_key, open_corpus, prepare_corpus, unspecified_corpus
from trainer.errors import MachineFault, UserError
from trainer.shards import Tokens

ZIPF = DataConfig(source=Source.zipf_facts, tokens=30_001, seed=3)
MAKER = """
import sys
from pathlib import Path
from trainer.config import DataConfig, Source
from trainer.corpus import prepare_corpus

def wait(message, share):
    if not waited:
        waited.append(share)
        print("making", flush=True)
        sys.stdin.readline()

waited = []
config = DataConfig(source=Source.zipf_facts, tokens=30_001, seed=3)
print(prepare_corpus(config, Path(sys.argv[1]), wait).id, flush=True)
"""


def start_maker(root: Path) -> subprocess.Popen[str]:
    """A process that stands still in the middle of making the corpus of ``ZIPF``, until it is sent a line."""
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert maker.stdout is not None
    assert maker.stdout.readline() == "making\n"
    return maker


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


# zipf_facts


def test_the_floor_of_the_facts_is_the_known_one() -> None:
    assert f"{zipf_facts.entropy_floor():.5f}" == "1.99963"


def test_the_facts_have_the_entropy_they_claim(tmp_path: Path) -> None:
    """Plug-in entropies of 2M triples; a sample's entropy is biased by about (states - 1) / 2n."""
    corpus = prepare_corpus(DataConfig(source=Source.zipf_facts, tokens=6e6, seed=1), tmp_path)
    triples = corpus.train[0:6_000_000].reshape(-1, 3).astype(np.int64)
    assert triples[:, 0].max() < 128 <= triples[:, 1].min()
    keys = triples[:, 0] * 128 + triples[:, 1] - 128

    counts = np.bincount(keys, minlength=zipf_facts.KEYS)
    shares = counts[counts > 0] / counts.sum()
    key_entropy = -np.sum(shares * np.log(shares)) + (zipf_facts.KEYS - 1) / (2 * len(keys))

    frequent = keys < 100
    own = np.array([np.bincount(triples[keys == key, 2]).argmax() for key in range(100)])
    hits = np.mean(own[keys[frequent]] == triples[frequent, 2])
    misses = triples[frequent, 2][own[keys[frequent]] != triples[frequent, 2]]
    assert len(np.unique(misses)) == 256
    value_entropy = -hits * math.log(hits) - (1 - hits) * math.log((1 - hits) / 255)
    assert (key_entropy + value_entropy) / 3 == pytest.approx(zipf_facts.entropy_floor(), abs=3e-3)


def test_facts_are_the_same_on_every_machine_and_differ_by_seed(tmp_path: Path) -> None:
    corpus = prepare_corpus(ZIPF, tmp_path)
    assert corpus.id == "zipf_facts-ba6ec93aaa92"
    assert (corpus.vocabulary, corpus.train_tokens, corpus.sets[0].bytes_per_token) == (256, 30_001, 1.0)
    folder = tmp_path / "corpora" / corpus.id
    assert sorted(path.name for path in folder.iterdir()) == ["header.json", "train.bin", "validation.bin"]
    assert hashlib.sha256((folder / "train.bin").read_bytes()).hexdigest().startswith("2be4aac7f4ea461a")
    facts = json.loads((folder / "header.json").read_text())["facts"]
    assert facts == {"entropy_floor_nats_per_token": zipf_facts.entropy_floor()}

    other = prepare_corpus(DataConfig(source=Source.zipf_facts, tokens=30_001, seed=4), tmp_path)
    assert other.id != corpus.id
    assert np.mean(other.train[0:30_001] == corpus.train[0:30_001]) < 0.5
    assert not np.array_equal(corpus.sets[0].tokens[0:30_000], corpus.train[0:30_000])


def test_a_longer_corpus_continues_a_shorter_one(tmp_path: Path) -> None:
    longer = prepare_corpus(DataConfig(source=Source.zipf_facts, tokens=4e6, seed=3), tmp_path)
    assert np.array_equal(longer.train[0:30_001], prepare_corpus(ZIPF, tmp_path).train[0:30_001])


@pytest.mark.parametrize("tokens", [0, -3, 1.5, math.nan, math.inf])
def test_token_counts_that_are_none(tmp_path: Path, tokens: float) -> None:
    sentence = refused(lambda: prepare_corpus(DataConfig(source=Source.zipf_facts, tokens=tokens), tmp_path))
    assert sentence.startswith(f"data.tokens={tokens:g} is not a whole number of at least 1")


# python_source


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small tree in the place of the installed sources."""
    folder = tmp_path / "installed"
    for number in range(300):
        path = folder / f"sub{number % 7}" / f"file{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"value = {number}\n" * 40)
    monkeypatch.setattr(python_source, "source_folders", lambda: {"pkg": folder})
    return folder


PYTHON = DataConfig(source=Source.python_source, sequence=16, eval_windows=2)


def test_python_source_keeps_every_file_once(tmp_path: Path, sources: Path) -> None:
    (sources / "copy.py").write_bytes((sources / "sub0" / "file0.py").read_bytes())
    (sources / "binary.py").write_bytes(b"x\0y")
    (sources / "empty.py").write_bytes(b"")
    (sources / "gone.py").symlink_to(sources / "nowhere")
    (sources / "notes.txt").write_text("no source")
    (sources / "site-packages").mkdir()
    (sources / "site-packages" / "other.py").write_text("not this package's")
    corpus = prepare_corpus(PYTHON, tmp_path)

    texts = [bytes(part[0 : len(part)]).split(b"\0") for part in (corpus.train, corpus.sets[0].tokens)]
    assert all(part.pop() == b"" for part in texts)
    kept = texts[0] + texts[1]
    assert sorted(kept) == sorted(path.read_bytes() for path in sources.glob("sub*/*.py"))
    assert len(texts[1]) == pytest.approx(10, abs=9)
    for part in texts:
        assert part == sorted(part, key=lambda text: hashlib.sha1(text).hexdigest()), (
            "neighbours have nothing in common"
        )
    header = json.loads((tmp_path / "corpora" / corpus.id / "header.json").read_text())
    assert header["facts"] == {"files": 300, "files_left_out": 4}
    assert corpus.train_tokens + len(corpus.sets[0].tokens) == sum(len(text) + 1 for text in kept)


def test_python_source_twice_is_the_same_bytes_and_another_file_another_id(tmp_path: Path, sources: Path) -> None:
    roots = [tmp_path / name for name in ("a", "b", "c", "d")]
    first = prepare_corpus(PYTHON, roots[0])
    assert prepare_corpus(PYTHON, roots[1]).id == first.id
    assert everything(roots[0]) == everything(roots[1])

    (sources / "z_copy.py").write_bytes((sources / "sub0" / "file0.py").read_bytes())
    assert prepare_corpus(PYTHON, tmp_path / "e").id == first.id, "a copy adds nothing"
    (sources / "more.py").write_text("print(1)\n")
    assert prepare_corpus(PYTHON, roots[2]).id != first.id
    assert prepare_corpus(PYTHON, roots[0]).id == first.id, "a root keeps the corpus it has"

    cut = DataConfig(source=Source.python_source, max_file_bytes=100, sequence=16, eval_windows=2)
    cut_corpus = prepare_corpus(cut, roots[0])
    assert cut_corpus.id != first.id
    assert max(map(len, bytes(cut_corpus.train[0 : cut_corpus.train_tokens]).split(b"\0"))) == 100


def test_the_standard_library_makes_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_source, "PACKAGES", ("no_such_package",))
    steps: list[tuple[str, float]] = []
    corpus = prepare_corpus(DataConfig(), tmp_path, lambda message, share: steps.append((message, share)))
    assert corpus.train_tokens > 5_000_000
    assert 0.01 < len(corpus.sets[0].tokens) / corpus.train_tokens < 0.08
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_packages_are_found_without_importing_them() -> None:
    look = "import sys; from trainer import python_source as p, batches; print(*p.source_folders())"
    imported = "print(*(name for name in p.PACKAGES if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{look}; {imported}"], capture_output=True, text=True, check=True)
    found, loaded = done.stdout.splitlines()
    assert {"stdlib", "torch", "numpy", "scipy"} <= set(found.split())
    assert loaded == "numpy"


# tokens


def write_tokens(
    folder: Path, vocabulary: int = 1000, dtype: str = "uint16", shards: int = 3, size: int = 700
) -> dict[str, Any]:
    """A user's folder; gives the header it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = [f"train_{number}.bin" for number in range(shards)]
    for name in [*names, "validation.bin"]:
        rng.integers(0, vocabulary, size).astype(dtype).tofile(folder / name)
    header = {
        "vocabulary": vocabulary,
        "dtype": dtype,
        "tokens": {"train": shards * size, "validation": size},
        "bytes": {"validation": 4 * size},
        "shards": {"train": names, "validation": ["validation.bin"]},
        "remark": "further fields are ignored",
    }
    (folder / "header.json").write_text(json.dumps(header))
    return header


def tokens_of(folder: Path, **settings: Any) -> DataConfig:
    return DataConfig(source=Source.tokens, path=str(folder), sequence=16, eval_windows=4, **settings)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_user_tokens_are_read_in_place(tmp_path: Path, dtype: str) -> None:
    mine = tmp_path / "mine"
    write_tokens(mine, dtype=dtype)
    corpus = prepare_corpus(tokens_of(mine), tmp_path / "root")
    written = np.concatenate([np.fromfile(mine / f"train_{number}.bin", dtype) for number in range(3)])
    assert np.array_equal(corpus.train[0:2100], written)
    assert np.array_equal(corpus.train[650:1450], written[650:1450]), "across three shards"
    assert np.array_equal(corpus.train.gather(np.array([690, 0]), 20), [written[690:710], written[:20]])
    assert (corpus.vocabulary, corpus.sets[0].bytes_per_token) == (1000, 4.0)
    folder = tmp_path / "root" / "corpora" / corpus.id
    assert [path.name for path in folder.iterdir()] == ["header.json"], "nothing is copied"
    assert json.loads((folder / "header.json").read_text())["folder"] == str(mine)
    assert corpus_key(tokens_of(mine)) != corpus_key(tokens_of(tmp_path))


def test_user_tokens_are_known_by_content(tmp_path: Path) -> None:
    mine, moved, root = tmp_path / "mine", tmp_path / "moved", tmp_path / "root"
    header = write_tokens(mine)
    corpus = prepare_corpus(tokens_of(mine), root)
    mine.rename(moved)
    assert f"restore the shards at {mine}" in refused(lambda: open_corpus(root, corpus.id))
    assert prepare_corpus(tokens_of(moved), root).id == corpus.id
    assert len(open_corpus(root, corpus.id).train) == 2100

    np.zeros(700, "uint16").tofile(moved / "train_2.bin")
    assert "no longer that of this corpus" in refused(lambda: open_corpus(root, corpus.id))
    changed = prepare_corpus(tokens_of(moved), root)
    assert changed.id != corpus.id
    (moved / "header.json").write_text(json.dumps(header | {"vocabulary": 1001}))
    assert prepare_corpus(tokens_of(moved), root).id not in (corpus.id, changed.id)


@pytest.mark.parametrize("harm", ["shortened", "emptied", "lengthened", "removed", "shortened before it was read"])
def test_a_shard_that_changes_while_it_is_read_is_named(tmp_path: Path, harm: str) -> None:
    """A mapped file that got shorter would end the process with a signal."""
    write_tokens(tmp_path / "mine")
    corpus = prepare_corpus(tokens_of(tmp_path / "mine"), tmp_path / "root")
    corpus.train.gather(np.array([0]), 5)
    shard = tmp_path / "mine" / ("train_2.bin" if "before" in harm or harm == "removed" else "train_0.bin")
    size = shard.stat().st_size
    if harm == "removed":
        shard.unlink()
    else:
        os.truncate(shard, {"emptied": 0, "lengthened": size + 2}.get(harm, 100))
    said = refused(lambda: corpus.train.gather(np.array([100 if shard.name == "train_0.bin" else 1500]), 500))
    assert f"the shard {shard} was changed or removed after it was opened; restore it" in said
    assert len(corpus.train.gather(np.array([800]), 20)) == 1, "others can be read"


def set_field(header: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The header with one field changed, or without it where the value is None."""
    header = json.loads(json.dumps(header))
    *outer, last = path.split(".")
    place = header
    for name in outer:
        place = place[name]
    place.pop(last, None)
    return header if value is None else (place.update({last: value}) or header)


@pytest.mark.parametrize(
    "path", ["vocabulary", "dtype", "tokens", "tokens.validation", "bytes.validation", "shards", "shards.train"]
)
def test_a_header_without_a_field(tmp_path: Path, path: str) -> None:
    header = write_tokens(tmp_path)
    (tmp_path / "header.json").write_text(json.dumps(set_field(header, path, None)))
    assert f"data.path={tmp_path}: header.json has no field {path}" in refused(
        lambda: prepare_corpus(tokens_of(tmp_path), tmp_path)
    )


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("dtype", "int64", "dtype='int64', which is not one of uint8, uint16, uint32"),
        ("dtype", ["uint8"], "dtype=['uint8'], which is not one of uint8, uint16, uint32"),
        ("end_of_text", True, "end_of_text=True, which is no token of its vocabulary=1000"),
        ("dtype", "uint8", "vocabulary=1000, but dtype=uint8 numbers only 256 tokens"),
        ("vocabulary", "big", "vocabulary='big', which is not a whole number"),
        ("vocabulary", 10, "outside its vocabulary of 10"),
        ("tokens.train", 0, "tokens.train=0, which is not a whole number of at least 1"),
        ("tokens.train", 2101, "the train shards hold 2100 tokens where header.json says 2101"),
        ("tokens.train", True, "tokens.train=True, which is not a whole number"),
        ("shards.train", [], "shards.train=[], which is not a list of file names"),
        ("shards.train", "train_0.bin", "shards.train='train_0.bin', which is not a list"),
        ("shards.validation", ["absent.bin"], "the shard absent.bin cannot be read (No such file"),
    ],
)
def test_a_header_that_cannot_be(tmp_path: Path, path: str, value: Any, said: str) -> None:
    header = write_tokens(tmp_path / "mine")
    (tmp_path / "mine" / "header.json").write_text(json.dumps(set_field(header, path, value)))
    assert said in refused(lambda: prepare_corpus(tokens_of(tmp_path / "mine"), tmp_path))
    assert not list(tmp_path.glob("corpora/*"))


@pytest.mark.parametrize(("text", "said"), [("{", "is not JSON"), ("[1]", "is not a JSON object"), (None, "No such")])
def test_a_header_that_is_none(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "header.json").write_text(text)
    assert said in refused(lambda: prepare_corpus(tokens_of(tmp_path), tmp_path))


def test_the_place_of_a_token_outside_the_vocabulary(tmp_path: Path) -> None:
    write_tokens(tmp_path)
    tokens = np.fromfile(tmp_path / "train_1.bin", "uint16")
    tokens[5] = 1000
    tokens.tofile(tmp_path / "train_1.bin")
    assert "the train part has a token 1000 at 705, outside its vocabulary of 1000" in refused(
        lambda: prepare_corpus(tokens_of(tmp_path), tmp_path / "root")
    )


def test_a_shard_with_half_a_token(tmp_path: Path) -> None:
    write_tokens(tmp_path)
    with (tmp_path / "train_0.bin").open("ab") as file:
        file.write(b"x")
    assert "train_0.bin has 1401 bytes, no multiple of the 2 of uint16" in refused(
        lambda: prepare_corpus(tokens_of(tmp_path), tmp_path / "root")
    )


def test_paths_that_are_none(tmp_path: Path) -> None:
    assert "needs data.path=" in refused(lambda: prepare_corpus(DataConfig(source=Source.tokens), tmp_path))
    absent = tmp_path / "absent"
    assert f"data.path={absent} is not a folder" in refused(lambda: prepare_corpus(tokens_of(absent), tmp_path))


def test_windows_that_do_not_fit_are_refused_when_prepared(tmp_path: Path) -> None:
    write_tokens(tmp_path)
    config = tokens_of(tmp_path)
    config.eval_windows = 44
    assert "hold 43 windows of data.sequence=16" in refused(lambda: prepare_corpus(config, tmp_path / "root"))
    config.sequence = 2100
    assert "data.sequence=2100 needs 2101 training tokens" in refused(lambda: prepare_corpus(config, tmp_path / "root"))


def open_files() -> int:
    """Of this process; 0 where the system does not say."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_more_shards_than_may_be_mapped_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.bin" for number in range(600)]
    for number, path in enumerate(paths):
        np.full(number % 3, number, "uint16").tofile(path)
    tokens = Tokens([(path, number % 3) for number, path in enumerate(paths)], "<u2")
    before = open_files()
    expected = np.concatenate([np.full(number % 3, number) for number in range(600)])
    assert np.array_equal(tokens[0 : len(tokens)], expected)
    assert tokens[5:5].size == 0
    assert open_files() - before <= 260


# every corpus


def test_unspecified_data_can_be_planned_and_not_trained_on(tmp_path: Path) -> None:
    config = DataConfig(source=Source.unspecified, vocabulary=32_000, tokens=1e12)
    facts = unspecified_corpus(config)
    assert (facts.id, facts.vocabulary, facts.train_tokens) == ("unspecified-v32000", 32_000, 10**12)
    assert "data.source=unspecified has no tokens to train on" in refused(lambda: prepare_corpus(config, tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_corpus_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = prepare_corpus(ZIPF, tmp_path)
    monkeypatch.setattr(zipf_facts, "make", None)
    again = DataConfig(source=Source.zipf_facts, tokens=30_001, seed=3, sequence=64, eval_windows=7, max_epochs=2)
    assert prepare_corpus(again, tmp_path).id == corpus.id, "windows and epochs do not decide the content"
    assert corpus_key(again) == corpus_key(ZIPF) != corpus_key(DataConfig(source=Source.zipf_facts, tokens=30_001))
    assert open_corpus(tmp_path, corpus.id).train_tokens == 30_001


@pytest.mark.parametrize("harm", ["truncate", "remove", "header", "no header", "other bytes"])
def test_a_damaged_corpus_is_refused(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "corpora" / prepare_corpus(ZIPF, tmp_path).id
    if harm == "truncate":
        os.truncate(folder / "train.bin", 30_000)
    elif harm == "remove":
        (folder / "validation.bin").unlink()
    elif harm == "header":
        os.truncate(folder / "header.json", 100)
    elif harm == "other bytes":
        (folder / "train.bin").write_bytes(b"x" * (folder / "train.bin").stat().st_size)
    else:
        (folder / "header.json").unlink()
    for act in (lambda: open_corpus(tmp_path, folder.name), lambda: prepare_corpus(ZIPF, tmp_path)):
        sentence = refused(act)
        assert sentence.startswith(f"corpus {folder}: ")
        assert sentence.endswith("; delete that folder and plan again.")
    shutil.rmtree(folder)
    assert prepare_corpus(ZIPF, tmp_path).id == folder.name


def test_a_corpus_the_root_has_not(tmp_path: Path) -> None:
    assert "corpus zipf_facts-0 is not at" in refused(lambda: open_corpus(tmp_path, "zipf_facts-0"))


def test_a_killed_maker_leaves_no_corpus_and_its_rest_is_cleared(tmp_path: Path) -> None:
    maker = start_maker(tmp_path)
    maker.kill()
    maker.wait()
    left = [path.name for path in (tmp_path / "corpora").iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".making-")

    corpus = prepare_corpus(ZIPF, tmp_path)
    assert [path.name for path in (tmp_path / "corpora").iterdir()] == [corpus.id]


def test_two_makers_at_once_leave_one_good_corpus(tmp_path: Path) -> None:
    maker = start_maker(tmp_path)
    corpus = prepare_corpus(ZIPF, tmp_path)
    made = everything(tmp_path / "corpora" / corpus.id)
    assert len(list(tmp_path.glob("corpora/.making-*"))) == 1, "a maker that lives is left alone"
    out, _ = maker.communicate("\n")
    assert (out, maker.returncode) == (f"{corpus.id}\n", 0)
    assert everything(tmp_path / "corpora") == {f"{corpus.id}/{name}": content for name, content in made.items()}


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipf_facts, "_triples", full)
    with pytest.raises(MachineFault, match="the disk is full"):
        prepare_corpus(ZIPF, tmp_path)
    assert not list((tmp_path / "corpora").iterdir())

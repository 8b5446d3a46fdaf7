"""Batches: every window once an epoch, in an order that only (seed, index) decides."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.batches import eval_windows, permutation, train_batch, window_starts
from trainer.corpus import Corpus, ValidationSet
from trainer.errors import UserError
from trainer.resident import ResidentTokens, resident
from trainer.shards import Tokens


def counting_corpus(folder: Path, train: int, validation: int = 1000, cut: int | None = None) -> Corpus:
    """A corpus whose tokens are 0, 1, 2, ...: a window shows where it lies. ``cut``: where its second shard begins."""
    shards = []
    edges = [0, train] if cut is None else [0, cut, train]
    for first, last in itertools.pairwise(edges):
        np.arange(first, last, dtype="<u4").tofile(folder / f"{first}.bin")
        shards.append((folder / f"{first}.bin", last - first))
    np.arange(validation, dtype="<u4").tofile(folder / "validation.bin")
    return Corpus(
        id="counting",
        vocabulary=max(train, validation),
        train=Tokens(shards, "<u4"),
        sets=[
            ValidationSet(
                name="validation", bytes_per_token=1.0, tokens=Tokens([(folder / "validation.bin", validation)], "<u4")
            )
        ],
    )


def stream(corpus: Corpus, *, batches: int, sequences: int, seed: int = 0, sequence: int = 16) -> NDArray[np.int64]:
    return np.concatenate(
        [
            train_batch(corpus, seed=seed, index=index, sequences=sequences, sequence=sequence)
            for index in range(batches)
        ]
    )


@given(size=st.integers(1, 3000), seed=st.integers(-(2**63), 2**70), epoch=st.integers(0, 10**6))
def test_an_epoch_visits_every_window_once(size: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(range(size), size, seed, epoch)) == list(range(size))


@given(size=st.integers(1, 2**48), seed=st.integers(0, 2**32), data=st.data())
def test_any_part_of_an_order_is_found_without_the_rest(size: int, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, min(size, start + 50)))
    part = permutation(range(start, stop), size, seed, 0)
    assert len(set(part.tolist())) == stop - start
    assert part.min() >= 0
    assert part.max() < size
    single = [int(permutation(range(place, place + 1), size, seed, 0)[0]) for place in range(start, stop)]
    assert part.tolist() == single


def test_an_order_looks_random() -> None:
    """Ranks do not follow places, neighbours are no neighbours, and two orders have nothing in common."""
    size = 100_003
    orders = [permutation(range(size), size, seed, epoch) for seed, epoch in [(0, 0), (1, 0), (0, 1)]]
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.015
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.015
        assert np.mean(np.abs(np.diff(order)) < 100) < 0.004
        first_half = np.bincount(order[: size // 2] * 64 // size, minlength=64)
        assert np.all(np.abs(first_half - size / 128) < 6 * np.sqrt(size / 256))
    assert abs(np.corrcoef(orders[0], orders[1])[0, 1]) < 0.015
    assert abs(np.corrcoef(orders[0], orders[2])[0, 1]) < 0.015


def test_windows_tile_the_training_part(tmp_path: Path) -> None:
    corpus = counting_corpus(tmp_path, train=16 * 60 + 1, cut=333)
    rows = stream(corpus, batches=15, sequences=4)
    assert (rows.dtype, rows.shape) == (np.int64, (60, 17))
    assert np.array_equal(np.sort(rows[:, 1:].ravel()), np.arange(1, 961)), "every token but the first is a target once"
    assert np.all(np.diff(rows, axis=1) == 1)


def test_the_stream_does_not_depend_on_how_it_is_cut(tmp_path: Path) -> None:
    corpus = counting_corpus(tmp_path, train=16 * 50 + 9)
    whole = stream(corpus, batches=1, sequences=240)
    assert np.array_equal(whole, stream(corpus, batches=80, sequences=3))
    assert np.array_equal(whole[105:112], train_batch(corpus, seed=0, index=15, sequences=7, sequence=16))
    epochs = whole[:200, 0].reshape(4, 50)
    assert all(set(epoch) == set(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4, "another order every epoch"
    assert not np.array_equal(whole, stream(corpus, batches=1, sequences=240, seed=1))


def test_the_stream_is_the_same_in_every_version() -> None:
    """A run that is resumed by a later isoflop must go on with the data it began with."""
    assert permutation(range(5), 1_000_000, 7, 2).tolist() == [268419, 62477, 935629, 396559, 921870]


def test_starts_say_where_the_windows_lie(tmp_path: Path) -> None:
    corpus = counting_corpus(tmp_path, train=5000)
    starts = window_starts(corpus, seed=3, index=11, sequences=6, sequence=32)
    assert np.array_equal(starts, train_batch(corpus, seed=3, index=11, sequences=6, sequence=32)[:, 0])


@given(windows=st.integers(1, 60), sequence=st.integers(1, 16))
def test_validation_windows_are_spread_evenly(
    tmp_path_factory: pytest.TempPathFactory, windows: int, sequence: int
) -> None:
    corpus = counting_corpus(tmp_path_factory.mktemp("even"), train=100, validation=961)
    rows = eval_windows(corpus, windows=windows, sequence=sequence)["validation"]
    assert (rows.dtype, rows.shape) == (np.int64, (windows, sequence + 1))
    assert np.all(np.diff(rows, axis=1) == 1)
    gaps = np.diff(rows[:, 0])
    assert np.all(gaps >= sequence)
    assert np.ptp(gaps) <= 1 if len(gaps) else True
    assert 961 - rows[-1, 0] <= 961 / windows + 2, "the end of the part is measured too"


def test_windows_that_do_not_fit(tmp_path: Path) -> None:
    corpus = counting_corpus(tmp_path, train=32, validation=161)
    assert eval_windows(corpus, windows=10, sequence=16)["validation"][-1, -1] == 160
    with pytest.raises(UserError, match=r"data\.eval_windows=11: the 161 validation tokens .* hold 10 windows of"):
        eval_windows(corpus, windows=11, sequence=16)
    with pytest.raises(UserError, match=r"data\.eval_windows=0"):
        eval_windows(corpus, windows=0, sequence=16)
    with pytest.raises(UserError, match=r"data\.sequence=32 needs 33 training tokens, but the corpus counting has 32"):
        train_batch(corpus, seed=0, index=0, sequences=1, sequence=32)
    with pytest.raises(UserError, match=r"data\.sequence=0 is no length"):
        train_batch(corpus, seed=0, index=0, sequences=1, sequence=0)
    assert train_batch(corpus, seed=0, index=5, sequences=3, sequence=31).tolist() == [list(range(32))] * 3


@pytest.mark.parametrize("vocabulary", [256, 70_000])
def test_windows_on_the_device_are_those_of_the_shards(
    tmp_path: Path, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.resident.READ_TOKENS", 1000)
    tokens = np.random.default_rng(0).integers(vocabulary, size=4321)
    tokens.astype("<u4").tofile(tmp_path / "train.bin")
    train = Tokens([(tmp_path / "train.bin", len(tokens))], "<u4")
    corpus = Corpus(id="random", vocabulary=vocabulary, train=train, sets=[])
    here = ResidentTokens(corpus, torch.device("cpu"))
    which = {"seed": 3, "index": 2, "sequences": 8, "sequence": 16}
    found = here.gather(window_starts(corpus, **which), 17)
    assert found.dtype is torch.int64 and np.array_equal(found.numpy(), train_batch(corpus, **which))
    assert resident(corpus, torch.device("cpu")) is None

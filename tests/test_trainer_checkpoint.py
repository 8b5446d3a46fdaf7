from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint import SLOTS, free, newest, save
from trainer.config import Keep
from trainer.errors import MachineFault


def state(step: int) -> dict[str, Any]:
    return {"weights": torch.full((5,), float(step)), "nested": {"count": step}}


def filled(folder: Path, *steps: int, run_id: str = "run") -> None:
    slot = None
    for step in steps:
        slot = save(folder, run_id, step=step, state=state(step), newest=slot)


def test_the_newest_is_loaded_with_what_was_saved(tmp_path: Path) -> None:
    filled(tmp_path, 3, 7, 9)
    found = newest(tmp_path, "run")
    assert found is not None and found.step == 9 and found.slot == SLOTS[0]
    assert torch.equal(found.state["weights"], torch.full((5,), 9.0)) and found.state["nested"] == {"count": 9}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SLOTS)


def test_nothing_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path, "run") is None
    assert newest(tmp_path / "absent", "run") is None


@given(where=st.floats(0, 1), how=st.sampled_from(["cut", "flip"]))
def test_damage_anywhere_falls_back_to_the_older_slot(
    tmp_path_factory: pytest.TempPathFactory, where: float, how: str
) -> None:
    folder = tmp_path_factory.mktemp("slots")
    filled(folder, 3, 7)
    path = folder / SLOTS[1]
    data = bytearray(path.read_bytes())
    at = min(len(data) - 1, int(where * len(data)))
    if how == "cut":
        del data[at:]
    else:
        data[at] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match="is passed over"):
        found = newest(folder, "run")
    assert found is not None and found.step == 3


def test_another_runs_checkpoint_is_passed_over(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    with pytest.warns(UserWarning, match="it belongs to run run"):
        assert newest(tmp_path, "other") is None


def test_a_valid_pickle_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    filled(tmp_path, 3)
    save(tmp_path, "run", step=8, state={"evil": Evil()}, newest=SLOTS[0])
    with pytest.warns(UserWarning, match="torch cannot load it"):
        found = newest(tmp_path, "run")
    assert found is not None and found.step == 3
    assert not (tmp_path / "owned").exists()


def test_a_full_disk_leaves_both_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 3, 7)
    before = {slot: (tmp_path / slot).read_bytes() for slot in SLOTS}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineFault, match="the disk is full; free some space"):
        save(tmp_path, "run", step=9, state=state(9), newest=SLOTS[1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("keep", "left"), [(Keep.none, set()), (Keep.last, {SLOTS[1]}), (Keep.all, set(SLOTS))])
def test_policy(tmp_path: Path, keep: Keep, left: set[str]) -> None:
    filled(tmp_path, 3, 7)
    if keep is not Keep.all:
        (tmp_path / ".a.ckpt.1234.tmp").write_bytes(b"left by a kill")
    free(tmp_path, "run", keep)
    assert {path.name for path in tmp_path.iterdir()} == left
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (newest(tmp_path, "run") is not None) == bool(left)

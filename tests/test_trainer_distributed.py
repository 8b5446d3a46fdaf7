"""A run over several processes, by gloo, against the same run in one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from trainer_runs import REPOSITORY, make_run, rows, small_corpus

from trainer.errors import UserError
from trainer.lock import Lock
from trainer.loop import train
from trainer.native.build import library
from trainer.recipe import check_split
from trainer.runfolder import RunFolder

KERNELS: list[Any] = [
    {"step": "torch", "attention": "manual"},
    pytest.param(
        {"step": "native", "chunk": 1},
        marks=pytest.mark.skipif(library("fp32") is None, reason="no C++ compiler on this machine"),
    ),
]


def launched(folder: RunFolder, ranks: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(
        [*command, "-m", "trainer.distributed", str(folder.path)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kernels", KERNELS, ids=["torch", "native"])
def test_two_ranks_follow_the_curve_of_one(tmp_path: Path, kernels: dict[str, Any]) -> None:
    corpus = small_corpus(tmp_path)
    alone = make_run(tmp_path, corpus, sweep="alone", kernels=kernels)
    assert train(alone, tmp_path) == "done"
    folder = make_run(tmp_path, corpus, sweep="two", kernels=kernels)
    process = launched(folder)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    for mine, other in zip(rows(folder), rows(alone), strict=True):
        assert mine["step"] == other["step"] and mine["tokens"] == other["tokens"]
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    (one,), (two,) = alone.points().values(), folder.points().values()
    assert two["verdict"] == "done" and two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    (attempt,) = folder.attempts()
    assert attempt["why"] == "done"


def test_ranks_that_are_stopped_go_on_to_the_same_bits(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    kernels = {"step": "torch", "attention": "manual"}
    whole = make_run(tmp_path, corpus, sweep="whole", steps=300, kernels=kernels)
    _, errors = launched(whole).communicate(timeout=120)
    assert whole.points(), errors
    folder = make_run(tmp_path, corpus, sweep="stopped", steps=300, kernels=kernels)
    process = launched(folder)
    deadline = time.monotonic() + 60
    while not folder.metrics() and time.monotonic() < deadline:
        time.sleep(0.01)
    (attempt,) = folder.attempts()
    os.kill(attempt["pid"], signal.SIGTERM)
    process.communicate(timeout=60)
    assert not folder.points() and folder.attempts()[0]["why"].startswith("stopped: signal")
    _, errors = launched(folder).communicate(timeout=120)
    assert folder.points(), errors
    assert folder.attempts()[1]["resume_step"] > 0
    assert rows(folder) == rows(whole)


def test_a_batch_that_cannot_be_split_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = make_run(tmp_path, small_corpus(tmp_path), sequences=5)
    with pytest.raises(UserError, match=r"optim.batch=80 is 5 sequences, which cannot be split over 2 devices evenly"):
        check_split(folder.read_config().recipe, 2)
    process = launched(folder)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "cannot be split over 2 devices" in errors
    assert [path.name for path in folder.path.iterdir()] == ["config.yaml"]


def test_a_run_that_somebody_else_trains_is_left_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path, small_corpus(tmp_path))
    with Lock(folder.path) as lock:
        assert lock is not None
        process = launched(folder)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "is being trained by somebody else" in errors
    assert not folder.metrics()

"""Kill -9 at random moments: the run that results is the run that was never killed, to the bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from trainer_runs import make_run, rows, small_corpus

from trainer.config import Precision
from trainer.loop import train
from trainer.native.build import library
from trainer.runfolder import RunFolder

MOST_UPDATES = 12
"""Updates between two kills, at most: fewer kills than steps / this leave a run unfinished."""


def train_until_killed(folder: Path, root: Path, updates: int, torn: bool) -> None:
    """Train in this process and kill it after so many updates; ``torn`` leaves half a row behind."""
    left = iter(range(updates))

    def stop() -> None:
        if next(left, None) is None:
            if torn:
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write('{"step": 3, "tr')
            os.kill(os.getpid(), signal.SIGKILL)

    train(RunFolder(folder), root, should_stop=stop)


def start(*arguments: Any) -> BaseProcess:
    """A child that does the above; torch is imported once, by the server that children are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.loop"])
    child = context.Process(target=train_until_killed, args=arguments)
    child.start()
    return child


@pytest.mark.parametrize(
    ("dtype", "micro", "kernels"),
    [
        (Precision.fp32, 0, {"attention": "sdpa"}),
        (Precision.bf16, 4, {"attention": "manual"}),
        pytest.param(
            Precision.bf16,
            0,
            {"step": "native", "chunk": 2},
            marks=pytest.mark.skipif(library("bf16") is None, reason="no C++ compiler, or no AVX512_BF16, here"),
        ),
    ],
    ids=["torch fp32", "torch bf16", "native bf16"],
)
def test_killed_and_resumed_is_bit_identical(
    tmp_path: Path, whole: bool, dtype: Precision, micro: int, kernels: dict[str, Any]
) -> None:
    corpus = small_corpus(tmp_path)
    kills = 12 if whole else 3
    made: dict[str, Any] = {
        "steps": (kills + 1) * MOST_UPDATES,
        "dtype": dtype,
        "micro_batch": micro,
        "kernels": kernels,
    }
    unbroken = make_run(tmp_path, corpus, sweep="unbroken", **made)
    train(unbroken, tmp_path)
    folder = make_run(tmp_path, corpus, sweep="killed", checkpoint_seconds=0.004, **made)
    generator = random.Random(7)
    for kill in range(kills):
        child = start(folder.path, tmp_path, generator.randint(1, MOST_UPDATES), kill == 0)
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
    assert train(folder, tmp_path) == "done"
    assert len(folder.attempts()) == kills + 1 and folder.attempts()[-1]["resume_step"] > 0
    assert rows(folder) == rows(unbroken)
    assert folder.points()[folder.run_id]["loss"] == unbroken.points()[unbroken.run_id]["loss"]


def test_killed_from_outside_at_any_instruction(tmp_path: Path, whole: bool) -> None:
    """The kill falls where it falls: inside a checkpoint's write, a row, an update."""
    corpus = small_corpus(tmp_path)
    made: dict[str, Any] = {"steps": 300, "kernels": {"attention": "manual"}, "log_every": 3}
    unbroken = make_run(tmp_path, corpus, sweep="unbroken", **made)
    train(unbroken, tmp_path)
    folder = make_run(tmp_path, corpus, sweep="killed", checkpoint_seconds=0.02, **made)
    generator = random.Random(3)
    for _ in range(10 if whole else 2):
        child = start(folder.path, tmp_path, 10**9, False)
        attempts = len(folder.attempts())
        deadline = time.monotonic() + 60
        while len(folder.attempts()) == attempts and child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(generator.uniform(0.02, 0.3))
        child.kill()
        child.join()
    assert train(folder, tmp_path) == "done"
    assert rows(folder) == rows(unbroken)
    assert folder.points()[folder.run_id]["loss"] == unbroken.points()[unbroken.run_id]["loss"]
    assert not list(folder.checkpoints.glob(".*"))


def test_with_both_checkpoints_damaged_it_starts_over_and_ends_the_same(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    folder = make_run(tmp_path, corpus, checkpoint_seconds=0.0, kernels={"attention": "manual"})
    stops = iter([None] * 13 + ["stop"])
    train(folder, tmp_path, should_stop=lambda: next(stops))
    for path in folder.checkpoints.iterdir():
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="is passed over: it is cut short or altered"):
        assert train(folder, tmp_path) == "done"
    assert [attempt["resume_step"] for attempt in folder.attempts()] == [0, 0]
    unbroken = make_run(tmp_path, corpus, sweep="unbroken", kernels={"attention": "manual"})
    train(unbroken, tmp_path)
    assert rows(folder) == rows(unbroken)

"""Kill -9 at random moments: the run that results is the run that was never killed, to the bit."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from trainer_runs import make_run, rows, small_corpus, start_training

from trainer.config import Precision
from trainer.loop import train
from trainer.runfolder import RunFolder

STEPS = 60


def killed_in_step(folder: RunFolder, root: Path, updates: int, torn: bool) -> int:
    """Train in a child that is killed by itself after so many updates; ``torn`` leaves half a row behind."""
    tear = "(folder.path / 'metrics.jsonl').open('a').write('{\"step\": 3, \"tr')" if torn else "None"
    code = (
        "import os, signal\n"
        f"left = iter([None] * {updates})\n"
        "def stop():\n"
        "    for _ in left: return None\n"
        f"    {tear}\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(folder, root, should_stop=stop)"
    )
    child = start_training(folder, root, code)
    child.communicate(timeout=120)
    return child.returncode


@pytest.mark.parametrize(
    ("dtype", "micro", "attention"),
    [(Precision.fp32, 0, "sdpa"), (Precision.bf16, 4, "manual")],
)
def test_killed_and_resumed_is_bit_identical(
    tmp_path: Path, whole: bool, dtype: Precision, micro: int, attention: str
) -> None:
    corpus = small_corpus(tmp_path)
    made: dict[str, Any] = {"steps": STEPS, "dtype": dtype, "micro_batch": micro, "kernels": {"attention": attention}}
    unbroken = make_run(tmp_path, corpus, sweep="unbroken", **made)
    train(unbroken, tmp_path)
    folder = make_run(tmp_path, corpus, sweep="killed", checkpoint_seconds=0.005, **made)
    generator = random.Random(7)
    for kill in range(12 if whole else 2):
        assert killed_in_step(folder, tmp_path, generator.randint(1, 12), torn=kill == 0) == -signal.SIGKILL
        if folder.points():
            break
    assert train(folder, tmp_path) == "done"
    assert len(folder.attempts()) > 2 and folder.attempts()[-1]["resume_step"] > 0
    assert rows(folder) == rows(unbroken)
    assert folder.points()[folder.run_id]["loss"] == unbroken.points()[unbroken.run_id]["loss"]


def test_killed_from_outside_at_any_instruction(tmp_path: Path, whole: bool) -> None:
    """The kill falls where it falls: inside a checkpoint's write, a row, an update."""
    corpus = small_corpus(tmp_path)
    made: dict[str, Any] = {"steps": 400, "kernels": {"attention": "manual"}, "log_every": 3}
    unbroken = make_run(tmp_path, corpus, sweep="unbroken", **made)
    train(unbroken, tmp_path)
    folder = make_run(tmp_path, corpus, sweep="killed", checkpoint_seconds=0.0, **made)
    generator = random.Random(3)
    for _ in range(10 if whole else 1):
        child = start_training(folder, tmp_path)
        attempts = len(folder.attempts())
        deadline = time.monotonic() + 60
        while len(folder.attempts()) == attempts and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(generator.uniform(0.02, 0.3))
        child.kill()
        child.communicate()
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

"""What mirroring costs the runs: training time with tracking=wandb (offline) beside the same runs without.

    .venv/bin/python tests/benchmarks/bench_mirror.py [--turns 3] [--share 0.01]
    .venv/bin/python tests/benchmarks/bench_mirror.py --lag

Workers on every core train the same small runs, once mirrored and once not, in turns. Printed are the seconds that
attempts took (from their first line to their last), the time until all workers had left, and the processor time that
mirrors took while anything trained, which a busy machine does not blur. With ``--lag`` one run per core, so long that
mirroring catches up with it: when W&B got its first row, and how far behind the run's it was from then on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer_runs import make_run, small_corpus, small_shape

from analysis.ingest.wandb_files import read_attempt
from trainer.config import Backend, TrackingConfig, WandbMode
from trainer.runfolder import RunFolder

SIZES = {"4 of 1 s each": (4, 1500), "2 of 5 s each": (2, 8000)}
"""Runs per worker, and steps of each."""
LONG = 200_000
LOOKS = 12
LOOK_SECONDS = 12.0
WORKER = (
    "import sys; from pathlib import Path; from sweeps.dispatch.worker import Worker; "
    "Worker(Path(sys.argv[1]), sys.argv[2:], 'job', 5).go(lambda: None)"
)


def start(
    root: Path, tracking: TrackingConfig, runs: int, steps: int, name: str
) -> tuple[list[RunFolder], list[subprocess.Popen[bytes]]]:
    """A worker per core, each over runs of its own."""
    corpus, shape = small_corpus(root), small_shape(d_model=32, ffw=64)
    every: list[list[RunFolder]] = [
        [
            make_run(
                root, corpus, steps=steps, shape=shape, seed=100 * core + number, sweep=name, tracking=tracking,
                kernels={"attention": "sdpa"}, log_every=min(400, steps // 200), checkpoint_seconds=2.0,
            )
            for number in range(runs)
        ]
        for core in range(len(os.sched_getaffinity(0)))
    ]  # fmt: skip
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(mine[0].path.parent), *(run.run_id for run in mine)])
        for mine in every
    ]
    return [run for mine in every for run in mine], workers


def taken(pid: int) -> float:
    """Processor seconds of a process's descendants, so far."""
    total, tick = 0.0, os.sysconf("SC_CLK_TCK")
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / tick + taken(int(child))
    except OSError:  # it has ended
        pass
    return total


def train(root: Path, tracking: TrackingConfig, runs: int, steps: int, name: str) -> tuple[float, float, float]:
    """Mean seconds of an attempt, wall time until all workers have left, and the mirrors' share of processor time."""
    began = time.perf_counter()
    every, workers = start(root, tracking, runs, steps, name)
    mirrors = 0.0
    while not all(run.points() for run in every):
        mirrors = max(mirrors, sum(taken(worker.pid) for worker in workers))
        time.sleep(0.25)
    for worker in workers:
        assert worker.wait() == 0
    wall = time.perf_counter() - began
    attempts = [run.attempts()[0] for run in every]
    seconds = [attempt["end"] - attempt["start"] for attempt in attempts]
    return statistics.mean(seconds), wall, mirrors / sum(seconds)


def cost(root: Path, plain: TrackingConfig, mirrored: TrackingConfig, turns: int) -> None:
    """Print a table; ``runs`` are those of one core."""
    print(f"{'runs':14} {'plain, s':>9} {'mirrored':>9} {'ratio':>7} {'all: plain, s':>14} {'mirrored':>9}")
    for what, (runs, steps) in SIZES.items():
        seen: dict[str, list[tuple[float, float, float]]] = {"plain": [], "mirrored": []}
        for turn in range(turns):
            for name, tracking in (("plain", plain), ("mirrored", mirrored)):
                seen[name].append(train(root, tracking, runs, steps, f"{name}{runs}-{turn}"))
        one, two = ([statistics.median(values) for values in zip(*seen[name], strict=True)] for name in seen)
        print(f"{what:14} {one[0]:9.3f} {two[0]:9.3f} {two[0] / one[0]:7.3f} {one[1]:14.2f} {two[1]:9.2f}", flush=True)
        every = zip(seen["plain"], seen["mirrored"], strict=True)
        ratios = "  ".join(f"{m[0] / p[0]:.3f}" for p, m in every)
        print(f"  mirrors took {two[2]:.2%} of the training's time; ratios turn by turn: {ratios}", flush=True)


def lag(root: Path, tracking: TrackingConfig) -> None:
    """Print how far behind W&B is while every core trains."""
    runs, workers = start(root, tracking, 1, LONG, "lag")
    began = time.monotonic()
    print(f"{'s':>6} {'rows of the runs':>18} {'rows in W&B':>14} {'mirrors took, s':>20}")
    for look in range(1, LOOKS + 1):
        time.sleep(max(0.0, began + look * LOOK_SECONDS - time.monotonic()))
        files = [next(iter((run.path / "wandb").glob("offline-run-*/*.wandb")), None) for run in runs]
        told = [0 if file is None else len(read_attempt(file).rows) for file in files]
        there = [len(run.metrics()) for run in runs]
        mirrors = [round(taken(worker.pid), 2) for worker in workers]
        print(f"{time.monotonic() - began:6.0f} {there!s:>18} {told!s:>14} {mirrors!s:>20}", flush=True)
    for worker in workers:
        worker.kill()
        worker.wait()


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--share", type=float, default=TrackingConfig().share)
    parser.add_argument("--lag", action="store_true")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
    mirrored = TrackingConfig(backend=Backend.wandb, mode=WandbMode.offline, share=given.share)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if given.lag:
            lag(Path(folder), mirrored)
        else:
            cost(Path(folder), TrackingConfig(), mirrored, given.turns)


if __name__ == "__main__":
    main()

"""What mirroring costs the runs: training time with tracking=wandb (offline) beside the same runs without.

.venv/bin/python tests/benchmarks/bench_mirror.py

Workers on every core train the same small runs, once mirrored and once not, in turns. Printed are the seconds that
attempts took (from their first line to their last) and the processor time of training, and their ratio.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer_runs import make_run, small_corpus, small_shape

from trainer.config import Backend, TrackingConfig, WandbMode
from trainer.runfolder import RunFolder

TURNS = 3
SIZES = {"tiny (about 1 s)": (4, 1500), "short (about 5 s)": (2, 8000)}
"""Runs per worker, and steps of each."""
WORKER = (
    "import sys; from pathlib import Path; from sweeps.dispatch.worker import Worker; "
    "Worker(Path(sys.argv[1]), sys.argv[2:], 'job', 5).go(lambda: None)"
)


def train(root: Path, tracking: TrackingConfig, runs: int, steps: int, name: str) -> tuple[float, float]:
    """Mean seconds of an attempt, and wall time until all workers have left."""
    corpus, shape = small_corpus(root), small_shape(d_model=32, ffw=64)
    cores = len(os.sched_getaffinity(0))
    every: list[list[RunFolder]] = [
        [
            make_run(
                root, corpus, steps=steps, shape=shape, seed=100 * core + number, sweep=name, tracking=tracking,
                kernels={"attention": "sdpa"}, log_every=steps // 200, checkpoint_seconds=2.0,
            )
            for number in range(runs)
        ]
        for core in range(cores)
    ]  # fmt: skip
    began = time.perf_counter()
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(mine[0].path.parent), *(run.run_id for run in mine)])
        for mine in every
    ]
    for worker in workers:
        assert worker.wait() == 0
    wall = time.perf_counter() - began
    attempts = [run.attempts()[0] for mine in every for run in mine]
    return statistics.mean(attempt["end"] - attempt["start"] for attempt in attempts), wall


def main() -> None:
    """Print a table."""
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
    plain, mirrored = TrackingConfig(), TrackingConfig(backend=Backend.wandb, mode=WandbMode.offline)
    print(f"{'runs':20} {'plain, s':>9} {'mirrored, s':>12} {'ratio':>7} {'all: plain, s':>14} {'mirrored, s':>12}")
    for what, (runs, steps) in SIZES.items():
        seen: dict[str, list[tuple[float, float]]] = {"plain": [], "mirrored": []}
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(TURNS):
                for name, tracking in (("plain", plain), ("mirrored", mirrored)):
                    seen[name].append(train(Path(folder), tracking, runs, steps, f"{name}{turn}"))
        one, two = ([statistics.median(values) for values in zip(*seen[name], strict=True)] for name in seen)
        print(f"{what:20} {one[0]:9.3f} {two[0]:12.3f} {two[0] / one[0]:7.3f} {one[1]:14.2f} {two[1]:12.2f}")


if __name__ == "__main__":
    main()

"""Four horizons per size: cooldowns off one trunk against runs of their own, in FLOPs and in loss.

    .venv/bin/python tests/benchmarks/bench_trunks.py [--seeds 3] [--root DIR]

The models, data and rules are the quickstart's; the runs of their own are its linear schedule, each with the batch and
rate that the rules give it. Both sweeps are planned and trained by ``isoflop run``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SIZES = [1.2e4, 5.5e4]
HORIZONS = [2.5e5, 5e5, 1e6, 2e6]
SWEEPS = {"own runs": ["schedule=linear"], "trunks": ["schedule=wsd"]}


def isoflop(*arguments: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "sweeps.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(root: Path, seeds: int) -> dict[str, tuple[dict[str, float], list[dict[str, Any]]]]:
    """Each sweep's planned totals and its points."""
    found = {}
    for name, choice in SWEEPS.items():
        common = [f"root={root}", f"sweep.name={name.replace(' ', '-')}", "sweep.design=horizons", "sweep.budgets=[]"]
        lists = [f"sweep.sizes={SIZES}", f"sweep.horizons={HORIZONS}", f"sweep.seeds={list(range(seeds))}"]
        sweep = ["sweep=quickstart", *common, *(each.replace(" ", "") for each in lists), *choice]
        plan = json.loads(isoflop("plan", *sweep, "format=json"))
        isoflop("run", *sweep, "fit.replicates=20")
        states = {point["point_id"]: point for point in json.loads(isoflop("status", *sweep, "format=json"))["points"]}
        points = [row | {"loss": states[row["point_id"]]["loss"]} for row in plan["points"]]
        found[name] = (plan["totals"], points)
    return found


def table(points: list[dict[str, Any]]) -> np.ndarray:
    """Losses, (sizes, horizons, seeds)."""
    sizes = sorted({point["params_total"] for point in points})
    seeds = sorted({point["seed"] for point in points})
    out = np.full((len(sizes), len(HORIZONS), len(seeds)), np.nan)
    for point in points:
        horizon = int(np.argmin(np.abs(np.log(np.array(HORIZONS) / point["tokens"]))))
        out[sizes.index(point["params_total"]), horizon, seeds.index(point["seed"])] = point["loss"]
    return out


def main() -> None:
    """Print both sweeps side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = measure(options.root or Path(place), options.seeds)
    (own, own_points), (trunks, trunk_points) = found["own runs"], found["trunks"]
    a, b = table(own_points), table(trunk_points)
    print("tokens      " + "".join(f"{horizon:>22.3g}" for horizon in HORIZONS))
    for i, size in enumerate(SIZES):
        cells = [f"{a[i, j].mean():.4f} -> {b[i, j].mean():.4f}" for j in range(len(HORIZONS))]
        print(f"N = {size:<8.3g}" + "".join(f"{cell:>22}" for cell in cells))
    difference = (b - a).mean(axis=(0, 1))  # one mean per seed
    spread = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else float("nan")
    print(f"loss, trunks minus own runs: {difference.mean():+.4f} +- {spread:.4f} nats over {len(difference)} seeds;")
    print(f"scatter between seeds: {a.std(axis=2, ddof=1).mean():.4f} (own), {b.std(axis=2, ddof=1).mean():.4f}")
    print(f"FLOPs: own runs {own['flops_matmul']:.4g}, trunks {trunks['flops_matmul']:.4g}: "
          f"{own['flops_matmul'] / trunks['flops_matmul']:.2f}x fewer")  # fmt: skip


if __name__ == "__main__":
    main()

"""``isoflop fit`` on a large sweep: seconds, peak memory and the report's size.

    python tests/benchmarks/bench_fit_large.py [runs, default 5000] [rows of each curve, default 1000] [folder]

Makes the sweep, of real run folders, in a temporary folder; or once in the folder named, where later calls find it.
The losses follow Hoffmann's law with noise, under a cosine schedule. Prints how long reading alone takes besides.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from sweeps.paths import SweepFolder
from sweeps.planning.points import Plan, PlannedPoint, write_plan
from trainer.config import Cooldown, Decay, DeviceKind, Keep, Precision, TrackingConfig
from trainer.recipe import DataRecipe, OptimRecipe, Recipe, ScheduleRecipe
from trainer.runfolder import RunConfig, RunFolder, Runtime, final_record
from trainer.schedule import rate_factor
from trainer.shape import Shape

REPOSITORY = Path(__file__).parents[2]
BUDGETS = np.geomspace(1e18, 1e21, 10)
SIZES = np.geomspace(1 / 8, 8, 10)
"""Of a budget, relative to its best one by about 20 tokens per parameter."""
EVERY = 10
"""Updates from one row to the next."""
SECONDS = 0.1


def run_config(budget: float, size: float, seed: int, rows: int) -> RunConfig:
    """A run that spends the budget on a model about ``size`` times the best one."""
    width = 64 * max(1, round((size * (budget / 120) ** 0.5 * 64 / 12) ** (1 / 3) / 64))
    model = Shape(
        layers=max(1, width // 64),
        d_model=width,
        heads=width // 64,
        head_size=64,
        ffw=4 * width,
        vocabulary=32000,
        sequence=1024,
    )
    steps = rows * EVERY
    batch = model.sequence * max(1, round(budget / model.flops_per_token() / steps / model.sequence))
    recipe = Recipe(
        model=model,
        data=DataRecipe(corpus="made-up", eval_windows=64),
        optim=OptimRecipe(lr=0.01, batch=batch, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0),
        schedule=ScheduleRecipe(
            decay=Decay.cosine,
            warmup_steps=steps // 100,
            cooldown_steps=0,
            cooldown_shape=Cooldown.linear,
            final=0.1,
        ),
        steps=steps,
        seed=seed,
        dtype=Precision.bf16,
    )
    runtime = Runtime(
        device=DeviceKind.cuda,
        threads=1,
        micro_batch=0,
        eval_steps=tuple(round(share * steps) for share in (0.25, 0.5, 0.75, 0.85, 0.925, 1.0)),
        log_every=EVERY,
        checkpoint_seconds=60.0,
        keep=Keep.none,
        tracking=TrackingConfig(),
    )
    return RunConfig(sweep="large", recipe=recipe, runtime=runtime, budget=float(budget))


def write_run(root: Path, config: RunConfig) -> None:
    """The folder of a finished run."""
    recipe, shape = config.recipe, config.recipe.model
    folder = RunFolder(root / config.sweep / config.run_id)
    folder.write_config(config)
    attempt = folder.start_attempt("", 0)
    rng = np.random.default_rng(recipe.seed)
    lift = np.exp(0.002 * rng.standard_normal())
    noise = np.exp(0.01 * rng.standard_normal(recipe.steps // EVERY))
    lines = []
    for row, jitter in enumerate(noise.tolist()):
        done = (row + 1) * EVERY
        tokens = done * recipe.optim.batch
        rate = rate_factor(recipe.schedule, steps=recipe.steps, step=done - 1)
        loss = (1.69337 + 406.401 / shape.params_total**0.33917 + 410.7227 / tokens**0.28491) * lift + 0.05 * rate
        line = {"step": done - 1, "tokens": tokens, "flops": shape.flops(tokens), "train_loss": loss * jitter}
        line |= {
            "lr": recipe.optim.lr * rate,
            "grad_norm": jitter,
            "tokens_per_second": recipe.optim.batch / SECONDS,
        }
        if done in config.runtime.eval_steps:
            line["val_loss"] = loss
        lines.append(json.dumps(line | {"attempt": attempt, "time": 1.7e9 + SECONDS * done}))
    (folder.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    folder.end_attempt(attempt, "done")
    record = final_record(config, point_id=config.run_id, tokens=recipe.tokens, loss=float(loss), verdict="done")
    folder.write_point(record)


def make(root: Path, runs: int, rows: int) -> None:
    """The sweep with its plan, which is written last."""
    wanted = {}
    for number in range(runs):
        seed, place = divmod(number, len(BUDGETS) * len(SIZES))
        config = run_config(BUDGETS[place // len(SIZES)], SIZES[place % len(SIZES)], seed, rows)
        wanted[config.run_id] = config
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_run, [root] * len(wanted), wanted.values(), chunksize=50))
    told = {"budget_error": 0.0, "predicted_loss": None, "devices": 1, "hours": 1.0, "price": 0.0, "memory_gb": 1.0}
    points = [PlannedPoint(horizon=run.recipe.horizons[0], run=run, **told) for run in wanted.values()]
    write_plan(Plan(sweep="large", points=points), SweepFolder(root, "large"))


def timed(*command: str) -> tuple[float, float]:
    """Seconds and GB at the peak of a command and its children."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main() -> None:
    runs, rows = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 5000), (2, 1000)))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(sys.argv[3] if len(sys.argv) > 3 else temporary).absolute() / f"{runs}x{rows}"
        if not (root / "large" / "plan.json").exists():
            make(root, runs, rows)
        read = "from pathlib import Path; import sys; from analysis.ingest.runs import read_runs"
        seconds, memory = timed("-c", f"{read}; read_runs(Path(sys.argv[1]), ['large'])", str(root))
        print(f"{runs} runs of {rows} rows; reading alone: {seconds:.1f} s, {memory:.2f} GB", flush=True)
        seconds, memory = timed("-m", "sweeps.cli", "fit", f"root={root}", "sweep.name=large")
        report = (root / "large" / "fit" / "report.html").stat().st_size / 2**20
        print(f"isoflop fit: {seconds:.1f} s, {memory:.2f} GB, report {report:.1f} MB, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()

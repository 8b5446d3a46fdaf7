"""Small real runs for the trainer's tests: a synthetic corpus, a folder, a child process to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from trainer.config import Cooldown, DataConfig, Decay, DeviceKind, Keep, Precision, Source, TrackingConfig
from trainer.corpus import prepare_corpus
from trainer.recipe import Branch, DataRecipe, OptimRecipe, Recipe, ScheduleRecipe
from trainer.runfolder import RunConfig, RunFolder, Runtime
from trainer.shape import Shape

REPOSITORY = Path(__file__).resolve().parents[1]
VARYING = ("tokens_per_second", "mfu", "time", "attempt")
"""What may differ between two runs of one recipe."""


def small_corpus(root: Path) -> str:
    """The id of a corpus under ``root`` that is made in a fraction of a second."""
    config = DataConfig(source=Source.zipf_facts, tokens=20_000, sequence=16, eval_windows=40)
    return prepare_corpus(config, root).id


def small_shape(**changes: Any) -> Shape:
    """A model of a few thousand parameters."""
    values = {"layers": 2, "d_model": 16, "heads": 2, "head_size": 8, "ffw": 32, "vocabulary": 256, "sequence": 16}
    return Shape(**(values | changes))


def make_run(
    root: Path,
    corpus: str,
    *,
    steps: int = 24,
    shape: Shape | None = None,
    dtype: Precision = Precision.fp32,
    sequences: int = 6,
    lr: float = 0.01,
    seed: int = 0,
    sweep: str = "s",
    kernels: dict[str, Any] | None = None,
    branches: tuple[Branch, ...] = (),
    schedule: ScheduleRecipe | None = None,
    optim: dict[str, Any] | None = None,
    **runtime: Any,
) -> RunFolder:
    """A run folder with its config, ready to be trained."""
    model = shape or small_shape()
    recipe = Recipe(
        model=model,
        data=DataRecipe(corpus=corpus, eval_windows=40),
        optim=OptimRecipe(
            **{"lr": lr, "batch": sequences * model.sequence, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
            | {"weight_decay": 0.05, "clip": 1.0}
            | (optim or {})
        ),
        schedule=schedule
        or ScheduleRecipe(
            decay=Decay.cosine, warmup_steps=3, cooldown_steps=0, cooldown_shape=Cooldown.linear, final=0.0
        ),
        steps=steps,
        branches=branches,
        seed=seed,
        dtype=dtype,
    )
    values = {
        "device": DeviceKind.cpu,
        "threads": 1,
        "micro_batch": 0,
        "eval_steps": (steps // 2, steps),
        "log_every": 5,
        "checkpoint_seconds": 1e9,
        "keep": Keep.last,
        "tracking": TrackingConfig(),
    }
    config = RunConfig(
        sweep=sweep, recipe=recipe, runtime=Runtime(**(values | runtime)), budget=1e9, kernels=kernels or {}
    )
    folder = RunFolder(root / sweep / config.run_id)
    folder.write_config(config)
    return folder


def wsd(cooldown: int, shape: Cooldown = Cooldown.sqrt) -> ScheduleRecipe:
    """A constant rate with a cooldown of so many steps."""
    return ScheduleRecipe(decay=Decay.wsd, warmup_steps=3, cooldown_steps=cooldown, cooldown_shape=shape, final=0.0)


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    """The valid metrics rows without what may differ between two runs of one recipe."""
    return [{key: value for key, value in row.items() if key not in VARYING} for row in folder.metrics()]


def start_training(folder: RunFolder, root: Path, code: str = "train(folder, root)") -> subprocess.Popen[str]:
    """Train a folder in a child process; ``code`` may use ``train``, ``folder`` and ``root``."""
    program = (
        "import sys; from pathlib import Path\n"
        "from trainer.loop import train; from trainer.runfolder import RunFolder\n"
        f"folder, root = RunFolder(Path(sys.argv[1])), Path(sys.argv[2])\n{code}\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder.path), str(root)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

"""What a shape reaches on the machine at hand: a few steps on random tokens, before any run has told.

    python -m trainer.probe RUN_FOLDER [SECONDS]

prints one line of JSON: ``flops_per_second`` (training), ``tokens_per_second``, ``peak_bytes`` and ``kernels``, for the
run whose config lies in the folder. Nothing is written.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.engine import DeviceMemory, choose_kernels, open_engine, prepare_device
from trainer.runfolder import RunConfig, RunFolder

WARM = 2
"""Steps that do not count."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was measured."""

    flops_per_second: float
    """Training FLOPs (matmul count)."""
    tokens_per_second: float
    peak_bytes: int
    kernels: dict[str, Any]


def probe(config: RunConfig, device: torch.device, *, seconds: float = 5.0) -> Probe:
    """Train a run's shape, batch and precision on random tokens for about ``seconds``: three steps at least.

    With the run's kernels, where they are chosen already.
    """
    recipe = config.recipe
    torch.set_num_threads(config.runtime.threads)
    config = replace(config, kernels=dict(config.kernels) or choose_kernels(config, device))
    memory = DeviceMemory(device)
    engine = open_engine(config, device)
    size = (recipe.sequences, recipe.model.sequence + 1)
    windows = torch.randint(recipe.model.vocabulary, size, generator=torch.Generator().manual_seed(0)).to(device)

    def step() -> None:
        engine.gradient(windows)
        float(engine.optimizer.update(recipe.optim.lr, tokens=recipe.optim.batch))  # waits for the device

    for _ in range(WARM):
        step()
    steps, began = 0, time.perf_counter()
    while steps == 0 or time.perf_counter() - began < seconds:
        step()
        steps += 1
    tokens = steps * recipe.optim.batch / (time.perf_counter() - began)
    return Probe(
        flops_per_second=recipe.model.flops(tokens),
        tokens_per_second=tokens,
        peak_bytes=memory.peak(),
        kernels=dict(config.kernels),
    )


def main() -> None:
    """Probe the run of a folder."""
    config = RunFolder(Path(sys.argv[1])).read_config()
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
    found = probe(config, prepare_device(config.runtime.device), seconds=seconds)
    sys.stdout.write(json.dumps(vars(found)) + "\n")


if __name__ == "__main__":
    main()

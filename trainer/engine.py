"""What computes a run's losses and gradients, and the choice between the ways to do it.

``native`` is the C++ step of :mod:`trainer.native`, for CPUs with a compiler at hand; ``torch`` is autograd over
:class:`trainer.model.Transformer`, on any device. Which is taken is tried once per run folder, then kept: the choice
moves the last bits of a loss.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.adamw import FlatAdamW
from trainer.config import Precision
from trainer.errors import UserError
from trainer.kernels import CLEARLY, Attention, tune_attention
from trainer.memory import HostMemory
from trainer.model import Transformer, groups, initial_params, slots
from trainer.native.build import library
from trainer.native.model import NativeTransformer, chunk_of
from trainer.recipe import Recipe
from trainer.runfolder import RunConfig

NATIVE, TORCH = "native", "torch"
TUNE_TOKENS = 2048
TUNE_SECONDS = 0.2


class Engine(Protocol):
    """Losses are summed cross-entropies, in nats, of windows (B, T + 1) of token ids."""

    optimizer: FlatAdamW

    def gradient(self, windows: Tensor) -> Tensor:
        """The loss of a batch; its gradient is left in the optimiser's."""

    def loss(self, windows: Tensor) -> Tensor:
        """The loss alone."""


class TorchEngine:
    """Autograd over ``micro_batch`` sequences at a time, on any device."""

    def __init__(self, recipe: Recipe, initial: Tensor, *, attention: Attention, micro_batch: int) -> None:
        dtype = torch.bfloat16 if recipe.dtype is Precision.bf16 else torch.float32
        layout = slots(recipe.model, recipe.scaling)
        self.optimizer = FlatAdamW(initial, recipe.optim, groups=groups(layout), dtype=dtype)
        self._model = Transformer(recipe.model, self.optimizer.params, attention, recipe.scaling, recipe.optim.z_loss)
        self._micro_batch = micro_batch

    def gradient(self, windows: Tensor) -> Tensor:
        """As :class:`Engine` says."""
        total = torch.zeros((), dtype=torch.float64, device=windows.device)
        for number, part in enumerate(torch.split(windows, self._micro_batch)):
            loss = self._model.loss(part)
            self.optimizer.accumulate(self._model.gradient(loss), first=number == 0)
            total += loss.detach()
        return total

    def loss(self, windows: Tensor) -> Tensor:
        """As :class:`Engine` says."""
        with torch.no_grad():
            return self._model.loss(windows)


class NativeEngine:
    """The C++ step; it splits batches by itself."""

    def __init__(self, recipe: Recipe, initial: Tensor, *, chunk: int, threads: int) -> None:
        layout = slots(recipe.model, recipe.scaling)
        self.optimizer = FlatAdamW(initial, recipe.optim, groups=groups(layout), dtype=torch.float32)
        self._model = NativeTransformer(
            recipe.model,
            self.optimizer.master,
            recipe.dtype,
            chunk=chunk,
            threads=threads,
            scaling=recipe.scaling,
            z_loss=recipe.optim.z_loss,
        )

    def gradient(self, windows: Tensor) -> Tensor:
        """As :class:`Engine` says."""
        return self._model.gradient(windows, self.optimizer.gradient)

    def loss(self, windows: Tensor) -> Tensor:
        """As :class:`Engine` says."""
        return self._model.loss(windows)


def open_engine(config: RunConfig, device: torch.device) -> Engine:
    """The engine that the config's kernels name, at the run's start."""
    recipe, kernels = config.recipe, config.kernels
    initial = initial_params(recipe.model, recipe.seed, recipe.scaling).to(device)
    if kernels.get("step") == NATIVE:
        return NativeEngine(recipe, initial, chunk=int(kernels["chunk"]), threads=config.runtime.threads)
    micro_batch = config.runtime.micro_batch or recipe.sequences
    return TorchEngine(recipe, initial, attention=Attention(kernels["attention"]), micro_batch=micro_batch)


def usable(kernels: Mapping[str, Any], recipe: Recipe, where: str) -> bool:
    """Whether kernels chosen earlier can be had here; False where none were, or there is no compiler any more.

    Raises
    ------
    UserError
        If they name what does not exist.
    """
    if not kernels:
        return False
    step, path = kernels.get("step", TORCH), kernels.get("attention")
    if step == NATIVE and isinstance(kernels.get("chunk"), int):
        return library(recipe.dtype) is not None
    if step != TORCH:
        raise UserError(f"{where}: kernels.step={step!r} is none of {NATIVE} (with a chunk) and {TORCH}; restore it.")
    if path not in list(Attention):
        raise UserError(f"{where}: kernels.attention={path!r} is none of {', '.join(Attention)}; restore it.")
    return True


def choose_kernels(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """The fastest way to compute a run's steps here, tried out in under half a second where the model is small."""
    recipe, shape = config.recipe, config.recipe.model
    if device.type == "cpu" and _native_can(recipe) and library(recipe.dtype) is not None:
        chunk = min(chunk_of(shape), recipe.sequences)
        if _native_wins(recipe, chunk, config.runtime.threads):
            return {"step": NATIVE, "chunk": chunk, **_made(device)}
    return choose_torch(config, device)


def choose_torch(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """The same among the ways of torch."""
    recipe, shape = config.recipe, config.recipe.model
    path = tune_attention(
        sequences=config.runtime.micro_batch or recipe.sequences,
        heads=shape.heads,
        tokens=shape.sequence,
        size=shape.head_size,
        dtype=torch.bfloat16 if recipe.dtype is Precision.bf16 else torch.float32,
        device=device,
    )
    return {"step": TORCH, "attention": path.value, **_made(device)}


def _made(device: torch.device) -> dict[str, Any]:
    return {"torch": str(torch.__version__), "processor": processor(device)}


def _native_can(recipe: Recipe) -> bool:
    """Whether the C++ step knows all that the recipe asks for."""
    return not recipe.model.qk_norm


def _native_wins(recipe: Recipe, chunk: int, threads: int) -> bool:
    """False only where torch is clearly faster, so that two folders choose alike."""
    shape = recipe.model
    sequences = max(1, min(recipe.sequences, TUNE_TOKENS // shape.sequence))
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(shape.vocabulary, (sequences, shape.sequence + 1), generator=generator)
    initial = initial_params(shape, 0)
    engines: dict[str, Engine] = {
        NATIVE: NativeEngine(recipe, initial.clone(), chunk=chunk, threads=threads),
        TORCH: TorchEngine(recipe, initial, attention=usual(recipe.dtype), micro_batch=sequences),
    }
    best = dict.fromkeys(engines, math.inf)
    began = time.process_time()
    while time.process_time() - began < TUNE_SECONDS or math.inf in best.values():
        for name, engine in engines.items():  # in turns, by the process's own time: a busy machine does not decide
            start = time.process_time()
            engine.gradient(windows)
            best[name] = min(best[name], time.process_time() - start)
    return best[TORCH] * CLEARLY >= best[NATIVE]


def usual(dtype: Precision) -> Attention:
    """The attention path that is mostly the faster one on CPUs."""
    return Attention.manual if dtype is Precision.bf16 else Attention.sdpa


class DeviceMemory:
    """The most memory of a device that was in use since this was made: of a GPU's what torch held, of a host's above
    what the process had before."""

    def __init__(self, device: torch.device) -> None:
        self._host = None if device.type == "cuda" else HostMemory()
        if self._host is None:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Bytes."""
        return torch.cuda.max_memory_allocated() if self._host is None else self._host.peak()


def processor(device: torch.device) -> str:
    """What the kernels were chosen on; bit-exact results are promised for this one only."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

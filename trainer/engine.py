"""What computes a run's losses and gradients, and the choice between the ways to do it.

``native`` is the C++ step of :mod:`trainer.native`, for CPUs with a compiler at hand; ``torch`` is autograd over
:class:`trainer.model.Transformer`, on any device, in one of the ways of :mod:`trainer.ways`. Which is taken is tried
once per run folder, then kept: the choice moves the last bits of a loss.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.adamw import FlatAdamW
from trainer.config import DeviceKind, Precision, Way
from trainer.errors import UserError
from trainer.kernels import CLEARLY, Attention, tune_attention
from trainer.memory import HostMemory
from trainer.model import Transformer, groups, initial_params, slots
from trainer.native.build import NATIVE, chunk_of, knows, library
from trainer.native.model import NativeTransformer
from trainer.recipe import Recipe
from trainer.runfolder import RunConfig
from trainer.ways import Choice, Guarded, Recorded, Step, candidates, choose_way, compiled

TORCH = "torch"
TUNE_TOKENS = 2048
TUNE_SECONDS = 0.2
TAKEN = [way for way in Way if way is not Way.auto]
TRY_PARTS = 2
"""Micro-batches of a batch that ways are tried on, at most."""


class Engine(Protocol):
    """Losses are summed cross-entropies, in nats, of windows (B, T + 1) of token ids."""

    optimizer: FlatAdamW

    def gradient(self, windows: Tensor) -> Tensor:
        """The loss of a batch; its gradient is left in the optimiser's."""

    def loss(self, windows: Tensor) -> Tensor:
        """The loss alone."""


class TorchEngine:
    """Autograd over ``micro_batch`` sequences at a time, on any device."""

    def __init__(
        self, recipe: Recipe, initial: Tensor, *, attention: Attention, micro_batch: int, way: Way = Way.eager
    ) -> None:
        dtype = torch.bfloat16 if recipe.dtype is Precision.bf16 else torch.float32
        layout = slots(recipe.model, recipe.scaling)
        self.optimizer = FlatAdamW(initial, recipe.optim, groups=groups(layout), dtype=dtype)
        self.sizes = [slot.params for slot in layout]
        self._recipe, self._attention, self._micro_batch = recipe, attention, micro_batch
        self._model = self._transformer()
        self._compiled: tuple[Transformer, Step] | None = None
        self._step = self.step(Way.eager)
        if way is not Way.eager:
            self._step = Guarded(self.step(way), self._step, way)

    def gradient(self, windows: Tensor) -> Tensor:
        """As :class:`Engine` says."""
        return self._step(windows)

    def loss(self, windows: Tensor) -> Tensor:
        """As :class:`Engine` says; always eager, so that evaluations are the same in every way."""
        with torch.no_grad():
            return self._model.loss(windows)

    def step(self, way: Way) -> Step:
        """What computes :meth:`gradient` in a way; those that compile share what was compiled."""
        model = self._model
        loss: Step = model.loss
        if way.compiles:
            if self._compiled is None:
                plain = self._transformer(plain=True)
                self._compiled = plain, compiled(plain.loss)
            model, loss = self._compiled
        optimizer, micro_batch = self.optimizer, self._micro_batch  # and not self, which would keep itself

        def step(windows: Tensor) -> Tensor:
            total = torch.zeros((), dtype=torch.float64, device=windows.device)
            for number, part in enumerate(torch.split(windows, micro_batch)):
                one = loss(part)
                optimizer.accumulate(model.gradient(one), first=number == 0)
                total += one.detach()
            return total

        return Recorded(step) if way.records else step

    def _transformer(self, *, plain: bool = False) -> Transformer:
        recipe, params = self._recipe, self.optimizer.params
        return Transformer(recipe.model, params, self._attention, recipe.scaling, recipe.optim.z_loss, plain=plain)


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
    return TorchEngine(
        recipe,
        initial,
        attention=Attention(kernels["attention"]),
        micro_batch=config.runtime.micro_batch or recipe.sequences,
        way=Way(kernels.get("way", Way.eager)),
    )


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
    if kernels.get("way", Way.eager) not in TAKEN:
        raise UserError(f"{where}: kernels.way={kernels['way']!r} is none of {', '.join(TAKEN)}; restore it.")
    return True


def choose_kernels(config: RunConfig, device: torch.device, devices: int = 1) -> dict[str, Any]:
    """The fastest way to compute a run's steps here, where ``devices`` like this one share its batches.

    On a CPU it takes under half a second where the model is small; on a GPU a few, and where compiling is tried, that.
    """
    recipe, shape = config.recipe, config.recipe.model
    native = device.type == "cpu" and config.runtime.way is Way.auto and knows(recipe.model)
    if native and library(recipe.dtype) is not None:
        chunk = min(chunk_of(shape), recipe.sequences)
        if _native_wins(recipe, chunk, config.runtime.threads):
            return {"step": NATIVE, "chunk": chunk, **_made(device)}
    return choose_torch(config, device, devices)


def choose_torch(config: RunConfig, device: torch.device, devices: int = 1) -> dict[str, Any]:
    """The same among torch's."""
    kernels = choose_attention(config, device)
    if candidates(config.runtime.way, device):
        choice = _choose_way(config, device, Attention(kernels["attention"]), devices)
        kernels |= {"way": choice.way.value, "tried": choice.tried}
    return kernels


def choose_attention(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """The attention path alone."""
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


def _choose_way(config: RunConfig, device: torch.device, attention: Attention, devices: int) -> Choice:
    """Try the ways on random tokens, from the run's own start."""
    recipe, shape = config.recipe, config.recipe.model
    share = math.ceil(recipe.sequences / devices)
    micro_batch = min(config.runtime.micro_batch or share, share)
    sequences = min(share, TRY_PARTS * micro_batch)
    initial = initial_params(shape, recipe.seed, recipe.scaling).to(device)
    engine = TorchEngine(recipe, initial, attention=attention, micro_batch=micro_batch)
    choice = choose_way(
        config.runtime.way,
        engine.step,
        try_batches((sequences, shape.sequence + 1), shape.vocabulary, device),
        engine.optimizer.gradient,
        engine.sizes,
        recipe.dtype,
        updates=recipe.updates * share / sequences,
    )
    del initial, engine
    free_memory(device)
    return choice


def try_batches(size: tuple[int, ...], vocabulary: int, device: torch.device) -> list[Tensor]:
    """Two batches of random tokens, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, size, generator=generator).to(device) for _ in range(2)]


def free_memory(device: torch.device) -> None:
    """Give back what a GPU holds for tensors that are gone."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def prepare_device(kind: DeviceKind) -> torch.device:
    """The device of that kind, set up so that its results repeat.

    Not ``warn_only``: with that, torch's attention on GPUs stays as it is. Every operation of ours has a version whose
    bits repeat.
    """
    if kind is DeviceKind.cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
    return torch.device(kind.value)


def _made(device: torch.device) -> dict[str, Any]:
    return {"torch": str(torch.__version__), "processor": processor(device)}


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

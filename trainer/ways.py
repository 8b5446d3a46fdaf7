"""Ways to compute a step with torch, and the choice between them.

``eager`` launches one operation after another. ``graph`` records what a step launches and replays it as one CUDA graph,
``compile`` has torch's compiler fuse the operations between the products, ``compile_graph`` does both. What is not
eager has to prove itself on the machine at hand: it is taken only if it runs, agrees with eager on two batches, and is
clearly faster.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.config import Precision, Way

Step = Callable[[Tensor], Tensor]
"""From a batch to its losses; the gradient is left where the optimiser reads it."""
FASTER = 1.1
"""How much faster than the best so far a way must be: less may be noise, and two folders should choose alike."""
TRY_SECONDS = 0.5
"""For which the times of a way and of the best so far are taken, in turns; three steps each at least."""
COMPILE_PAYS_SECONDS = 300.0
"""Compiling takes half a minute or so and may save a third of a run: it is tried where a run lasts at least so long."""
DIFFERENCE = {Precision.fp32: 1e-3, Precision.bf16: 0.1}
"""How far a way's gradient may lie from eager's, for each tensor, relative to its norm: on random tokens it is 2e-6 and
0.02 for the compiler. Losses may differ by a hundredth of it."""


@dataclass(frozen=True)
class Choice:
    """The way taken, and in a phrase each what became of those that were looked at."""

    way: Way
    tried: dict[str, str] = field(default_factory=dict)


class Recorded:
    """A step whose launches are recorded at its first batch, and replayed for each one of that size.

    Parameters
    ----------
    step
        Reads nothing that changes but its batch and what lies at fixed places, and asks the host nothing.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._windows: Tensor | None = None
        self._replay: Callable[[], Tensor]

    def __call__(self, windows: Tensor) -> Tensor:
        """As the step."""
        if self._windows is None or self._windows.shape != windows.shape:
            self._windows = windows.clone()
            self._replay = record(self._step, self._windows)
        self._windows.copy_(windows)
        return self._replay().clone()  # the next replay writes over it


def record(step: Step, windows: Tensor) -> Callable[[], Tensor]:
    """What a step launches on a GPU, as a graph that reads ``windows`` where they lie.

    See "CUDA Graphs" in torch's notes: what is allocated at first use must be there before, so the step runs on a
    stream of its own first; and other threads (of runs beside this one, of NCCL) may use the device meanwhile.
    """
    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for _ in range(2):
            step(windows)
    here.wait_stream(aside)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what eager steps kept, the graph has to have once more
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        losses = step(windows)

    def replay() -> Tensor:
        graph.replay()
        return losses

    return replay


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function through torch's compiler, whole, for each size anew, by rules instead of timings where it can.

    What was compiled before is forgotten, and compiled again if it is still called: a worker that goes from run to run
    would reach the number of versions of a function that the compiler allows.
    """
    import torch._inductor.config as inductor  # here, because it takes a second

    torch.compiler.reset()
    options: dict[str, Any] = {"deterministic": True} if hasattr(inductor, "deterministic") else {}
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


class Guarded:
    """A step that goes on with another one where it cannot be computed at its first batch."""

    def __init__(self, step: Step, otherwise: Step, name: str) -> None:
        self._step, self._otherwise, self._name, self._ran = step, otherwise, name, False

    def __call__(self, windows: Tensor) -> Tensor:
        """As the step."""
        if self._ran:
            return self._step(windows)
        try:
            losses = self._step(windows)
        except Exception as error:
            self._step = self._otherwise
            remark(f"the {self._name} way, chosen earlier, fails here: {said(error)}; going on with eager")
            losses = self._step(windows)
        self._ran = True
        return losses


def candidates(wanted: Way, device: torch.device) -> tuple[Way, ...]:
    """The ways to try beside eager, each after those that it builds on; on a CPU only what is asked for by name."""
    if wanted is not Way.auto:
        return () if wanted is Way.eager else (wanted,)
    return (Way.graph, Way.compile, Way.compile_graph) if device.type == "cuda" else ()


def choose_way(
    wanted: Way,
    step: Callable[[Way], Step],
    batches: Sequence[Tensor],
    gradient: Tensor,
    sizes: Sequence[int],
    dtype: Precision,
    updates: float,
) -> Choice:
    """The fastest way that agrees with eager; one asked for by name is taken if it only agrees.

    Eager, too, where there is no memory for the comparison: that takes 8 bytes per parameter more than training.

    Parameters
    ----------
    step
        Makes the step that computes in a way.
    batches
        Two different ones, as a run has them: a graph that does not read its batch would agree on one.
    gradient
        Where steps leave it, (..., params).
    sizes
        Of the tensors that it consists of.
    updates
        How many such batches the run will take.
    """
    eager = step(Way.eager)
    taken, best, tried = Way.eager, eager, dict[str, str]()
    try:
        expected = [(eager(batch), gradient.clone()) for batch in batches]
        seconds = _seconds([eager], batches[0])[0]
    except torch.OutOfMemoryError as error:
        remark(f"eager is taken, as there is no memory to compare other ways with it: {said(error)}")
        return Choice(Way.eager, {"others": "not tried: no memory for the comparison"})
    for way in candidates(wanted, batches[0].device):
        lasts = seconds * updates
        if wanted is Way.auto and way.compiles and lasts < COMPILE_PAYS_SECONDS:
            tried[way] = f"not tried: the run takes {lasts:.3g} s, too short to repay compiling"
            continue
        if way is Way.compile_graph and tried.get(Way.compile, "").startswith("fails"):
            tried[way] = "not tried: compile fails"
            continue
        try:
            one = step(way)
            for batch, (loss, right) in zip(batches, expected, strict=True):
                _check(one(batch), gradient, loss, right, sizes, DIFFERENCE[dtype])
            ours, seconds = _seconds([one, best], batches[0])
        except Exception as error:
            tried[way] = f"fails: {said(error)}"
            remark(f"the {way} way is not taken, it {tried[way]}")
            continue
        tried[way] = f"{seconds / ours:.3g} times as fast as {taken}"
        if wanted is not Way.auto or ours * FASTER < seconds:
            taken, best, seconds = way, one, ours
    return Choice(taken, tried)


class Disagreement(Exception):
    """A way computes something else than eager does."""


def _check(
    loss: Tensor, gradient: Tensor, right_loss: Tensor, right: Tensor, sizes: Sequence[int], most: float
) -> None:
    """Raise :class:`Disagreement` where a loss or a tensor's gradient is further from eager's than it may be."""
    off = float(((loss - right_loss).abs() / right_loss.abs()).max())
    if not off <= most / 100:  # NaN is none
        raise Disagreement(f"its loss differs from eager's by {off:.2g} of it, where {most / 100:g} may be")
    parts = zip(*(torch.split(each, list(sizes), -1) for each in (gradient, right)), strict=True)
    for number, (ours, eagers) in enumerate(parts):
        off = float(((ours - eagers).norm(dim=-1) / eagers.norm(dim=-1).clamp(min=1e-30)).max())
        if not off <= most:
            raise Disagreement(
                f"the gradient of tensor {number} differs from eager's by {off:.2g} of it, where {most:g} may be"
            )


def _seconds(steps: Sequence[Step], batch: Tensor) -> list[float]:
    """The shortest time of each, in turns; on a CPU the process's own, so that a busy machine does not decide."""
    gpu = batch.is_cuda
    clock = time.perf_counter if gpu else time.process_time
    best, began, turns = [math.inf] * len(steps), clock(), 0
    while turns < 3 or clock() - began < TRY_SECONDS:
        for number, step in enumerate(steps):
            if gpu:
                torch.cuda.synchronize()
            start = clock()
            step(batch)
            if gpu:
                torch.cuda.synchronize()
            best[number] = min(best[number], clock() - start)
        turns += 1
    return best


def said(error: BaseException) -> str:
    """The first line of what an error says, after its kind, short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, Disagreement):
        return lines[0]
    return (f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)[:300]


def remark(text: str) -> None:
    """To whoever reads the worker's log."""
    sys.stderr.write(f"isoflop: {text}\n")

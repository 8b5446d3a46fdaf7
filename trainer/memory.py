"""How much memory a run needs: a model of it, in bytes, from its shape and batch; and how much it took.

The models count tensors: those that a step of torch keeps from its forward pass for its backward pass, and the buffers
of the C++ step (:mod:`trainer.native`), which takes a few sequences at a time. What the system's allocator loses on
top, and libraries take, is a fit to measured peaks. Once runs have finished, what they took corrects it
(:class:`sweeps.planning.cost.Experience`).
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from trainer.config import DeviceKind, Precision
from trainer.native.build import chunk_of
from trainer.shape import Activation, Positions, Shape

STATE_BYTES = 16
"""Per parameter: fp32 master, gradient and two moments."""
EVAL_TOKENS = 4096
"""Tokens per forward pass of an evaluation, whatever the batch, so that its sum does not depend on how one trains."""
GPU_BYTES = 35e6
"""cuBLAS's workspace, as repeatable results need it (CUBLAS_WORKSPACE_CONFIG=:4096:8)."""
HOST_BYTES = {Precision.bf16: 30e6, Precision.fp32: 22e6}
"""What torch's libraries take at their first use on a CPU."""
HOLES = {Precision.bf16: 0.6, Precision.fp32: 0.12}
"""What the heap of a CPU process loses in holes between kept activations, over these: more in bf16, where temporaries
are twice as large as what is kept beside them. Measured on 11 shapes of 0.1 to 27 million parameters, glibc 2.36."""
NATIVE_BYTES = 8e6
"""The C++ step's library and threads."""
RESET_PEAK = "5"
"""What Linux takes, written to ``clear_refs``, as the order to count a process's peak anew (proc(5))."""


def peak_bytes(shape: Shape, sequences: int, dtype: Precision, device: DeviceKind) -> float:
    """Peak bytes of torch's eager step over ``sequences`` sequences on one device; to be compiled it takes no more."""
    size, tokens = _item(dtype), sequences * shape.sequence
    scores = device is DeviceKind.cpu and dtype is Precision.bf16  # the path that is mostly the faster one there
    kept = tokens * _kept(shape, size, scores=False)
    square = size * shape.heads * shape.sequence  # bytes per token of one layer's scores
    activations = tokens * (_kept(shape, size, scores=True) + shape.layers * square) if scores else kept
    # Beside what is kept: logits, log-probabilities in fp32 (for bf16 a copy before) and their gradient; in the last
    # layer's backward pass gradients of the wide layer, of a norm's fp32 parts, or of the scores.
    wide = 14 if dtype is Precision.bf16 else 8
    layer = max(2 * size * shape.ffw, wide * shape.d_model, 2 * square if scores else 0)
    beside = tokens * max(_logits(shape, size), layer)
    gradients = size * shape.params_total + 4 * shape.vocabulary * shape.d_model
    copy = size * shape.params_total if dtype is Precision.bf16 else 0
    evaluation = EVAL_TOKENS * _logits(shape, size)
    needed = STATE_BYTES * shape.params_total + copy + max(activations + beside, gradients, evaluation)
    return needed + (GPU_BYTES if device is DeviceKind.cuda else HOST_BYTES[dtype] + HOLES[dtype] * kept)


def native_bytes(shape: Shape, dtype: Precision, threads: int) -> float:
    """Peak bytes of the C++ step: parameters packed twice, and a chunk's activations and scratch for each thread."""
    size, n = _item(dtype), chunk_of(shape) * shape.sequence
    into = shape.ffw * (2 if shape.activation is Activation.swiglu else 1)
    d, w, table = shape.d_model, shape.attention_width, shape.vocabulary * shape.d_model
    matrices = shape.params_total - shape.params_embedding - (0 if shape.tied_head else table)
    layer = n * (size * (2 * d + 4 * w + into + shape.ffw + shape.heads * shape.sequence) + 8)
    widest = max(3 * w, into, shape.vocabulary, d)
    scratch = n * (size * (shape.vocabulary + 2 * d + 4 * w + shape.ffw + 2 * widest) + 12 * d) + 4 * table
    further = (threads - 1) * 4 * shape.params_total  # gradients of threads but the first
    packed = 8 * (matrices + table)
    return (
        NATIVE_BYTES + STATE_BYTES * shape.params_total + packed + threads * (shape.layers * layer + scratch) + further
    )


def _item(dtype: Precision) -> int:
    return 2 if dtype is Precision.bf16 else 4


def _logits(shape: Shape, size: int) -> int:
    """Bytes per token at the loss."""
    return (size + 8 if size == 2 else 8) * shape.vocabulary


def _kept(shape: Shape, size: int, *, scores: bool) -> int:
    """Bytes per token that the forward pass keeps, without the scores themselves.

    Of each layer: both norms' inputs and outputs, their fp32 roots; q, k and v, and where fused attention takes views
    of the projections these as a whole, with what is turned; its output; what the non-linearity reads and gives.
    """
    d, w, turned = shape.d_model, shape.attention_width, shape.positions is Positions.rope
    attention = 4 * w if scores else (6 if turned else 4) * w
    if shape.qk_norm:
        attention += 2 * w
    ffw = shape.ffw * (4 if shape.activation is Activation.swiglu else 2)
    layer = size * (4 * d + attention + ffw) + 8 + (0 if scores else 4 * shape.heads)
    return shape.layers * layer + 2 * size * d


class HostMemory:
    """The peak of this process's memory, above what it had when this was made."""

    def __init__(self, status: Path = Path("/proc/self/status"), order: Path = Path("/proc/self/clear_refs")) -> None:
        self._status = status
        try:
            order.write_text(RESET_PEAK)
            self._resets = True
        except OSError:  # not Linux, or not allowed: then the peak of the process's whole life counts
            self._resets = False
        self._before = self._read("VmRSS") if self._resets else _peak_of_life()

    def peak(self) -> int:
        """Bytes."""
        return max(0, (self._read("VmHWM") if self._resets else _peak_of_life()) - self._before)

    def _read(self, name: str) -> int:
        for line in self._status.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        return 0


def _peak_of_life() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

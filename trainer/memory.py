"""How much memory a run needs: a model of it, in bytes, from its shape and batch; and how much it took.

The model is of torch's step; the C++ step of :mod:`trainer.native` needs less, as it takes a few sequences at a time.
Once runs have finished, what they took corrects it (:class:`sweeps.planning.cost.Experience`).
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from trainer.shape import Shape

STATE_BYTES = 20
"""Per parameter: fp32 master, gradient and two moments; in bf16 the copy that computes and its gradient, in fp32 one
more gradient."""
ACTIVATION_BYTES = 34
"""Per token, layer and unit of width (Korthikanti et al. 2022, without the attention scores)."""
SCORE_BYTES = 5
"""Per head and pair of positions, where the scores are kept."""
LOGIT_BYTES = 10
"""Per token and vocabulary entry: bf16 logits, fp32 copy, gradient."""
RESET_PEAK = "5"
"""What Linux takes, written to ``clear_refs``, as the order to count a process's peak anew (proc(5))."""


def peak_bytes(shape: Shape, sequences: int, *, scores_kept: bool) -> float:
    """Peak bytes of one training step of ``sequences`` sequences on one device.

    Parameters
    ----------
    scores_kept
        True for attention that stores its scores (the manual path on CPUs), False for flash attention.
    """
    tokens = sequences * shape.sequence
    state = STATE_BYTES * shape.params_total
    activations = ACTIVATION_BYTES * tokens * shape.d_model * shape.layers
    scores = SCORE_BYTES * shape.heads * tokens * shape.sequence * shape.layers if scores_kept else 0
    return float(state + activations + scores + LOGIT_BYTES * tokens * shape.vocabulary)


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

"""How much memory a run needs: a model of it, in bytes, from its shape and batch."""

from __future__ import annotations

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

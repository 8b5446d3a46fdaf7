"""Where a run's batch and rate come from: a power law of one's own, or one that others fitted. Pure.

N counts non-embedding parameters, D training tokens, C non-embedding FLOPs; batches are in tokens.

``steplaw``
    rate = 1.79 N^-0.713 D^0.307, batch = 0.58 D^0.571 (Li et al. 2025, "Predictable Scale: Part I", arXiv 2503.04715).
``deepseek``
    rate = 0.3118 C^-0.1250, batch = 0.2920 C^0.3271 (Bi et al. 2024, "DeepSeek LLM", arXiv 2401.02954, equation 1).
``porian``
    rate = 3.7 N^-0.36, batch = 0.7576 N^0.703, where N counts the head too (Porian et al. 2024, "Resolving
    Discrepancies in Compute-Optimal Scaling of Language Models", arXiv 2406.19146; the constants as two later
    users of the rule give them).
"""

from __future__ import annotations

import math

from trainer.config import OptimConfig, RateRule
from trainer.errors import UserError
from trainer.shape import Shape


def batch_for(optim: OptimConfig, shape: Shape, tokens: float) -> int:
    """Tokens per update, in whole sequences, between ``batch_min`` and ``batch_max``."""
    if optim.rule is RateRule.power:
        return batch_tokens(optim, tokens, shape.sequence)
    if optim.rule is RateRule.steplaw:
        wanted = 0.58 * tokens**0.571
    elif optim.rule is RateRule.porian:
        wanted = 0.7576 * _with_head(shape) ** 0.703
    else:
        wanted = 0.2920 * _compute(shape, tokens) ** 0.3271
    return _whole(optim, wanted, shape.sequence)


def rate_for(optim: OptimConfig, shape: Shape, tokens: float, batch: int) -> float:
    """The peak learning rate.

    Raises
    ------
    UserError
        If it is no positive number.
    """
    if optim.rule is RateRule.power:
        return learning_rate(optim, shape.d_model, batch)
    if optim.rule is RateRule.steplaw:
        rate = 1.79 * shape.params_non_embedding**-0.713 * tokens**0.307
    elif optim.rule is RateRule.porian:
        rate = 3.7 * _with_head(shape) ** -0.36
    else:
        rate = 0.3118 * _compute(shape, tokens) ** -0.1250
    return _stated(optim.lr * rate)


def batch_tokens(optim: OptimConfig, tokens: float, sequence: int) -> int:
    """The own batch rule, in tokens: a power of two near tokens / divisor, clipped, in whole sequences."""
    return _whole(optim, 2.0 ** round(math.log2(tokens / optim.batch_divisor)), sequence)


def learning_rate(optim: OptimConfig, d_model: int, batch: int) -> float:
    """The own rate rule: lr (width / lr_width)^lr_width_power (batch / lr_batch)^lr_batch_power."""
    width, size = d_model / optim.lr_width, batch / optim.lr_batch
    try:
        rate = optim.lr * width**optim.lr_width_power * size**optim.lr_batch_power
    except OverflowError:
        rate = math.inf
    if not 0 < rate < math.inf:
        raise UserError(
            f"optim: the rules give a width of {d_model} and a batch of {batch} the rate {rate}; check optim.lr, "
            "optim.lr_width_power and optim.lr_batch_power."
        )
    return _stated(rate)


def _compute(shape: Shape, tokens: float) -> float:
    """C = M D with M = 72 L d^2 + 12 L d S for the usual shape: all products but those of the vocabulary."""
    return (shape.flops_per_token() - 6 * shape.d_model * shape.vocabulary) * tokens


def _with_head(shape: Shape) -> int:
    return shape.params_non_embedding + shape.d_model * shape.vocabulary


def _whole(optim: OptimConfig, wanted: float, sequence: int) -> int:
    clipped = min(max(wanted, optim.batch_min), optim.batch_max)
    return max(1, round(clipped / sequence)) * sequence


def _stated(rate: float) -> float:
    return float(f"{rate:.12g}")  # the last bits of a power depend on the machine, and ids on the rate

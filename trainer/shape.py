"""A model's shape, and from it every parameter count and FLOP count of the project: nothing else counts them.

Conventions (``S`` sequence length, ``L`` layers, ``d`` model width, ``k`` head size, ``H`` heads, ``F`` feed-forward
width, ``V`` vocabulary):

``matmul``
    What dense hardware runs: every matrix product of the forward pass, the full ``S x S`` attention, times three.
``6nd``
    ``6 N D`` with N all parameters (Kaplan et al. 2020, with the embedding counted).
``palm``
    ``6 N + 12 L H k S`` per token, N without the input embedding and with the head (Chowdhery et al. 2022, app. B).
``chinchilla``
    Hoffmann et al. 2022, appendix F: embedding lookup as a product, softmax, logits; backward = twice forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trainer.errors import UserError

BACKWARD_AND_FORWARD = 3  # backward costs two products for each one of the forward pass


class Activation(StrEnum):
    """The feed-forward non-linearity; ``swiglu`` has three matrices, the others two."""

    gelu = "gelu"
    swiglu = "swiglu"
    relu2 = "relu2"


class Positions(StrEnum):
    """How positions enter: rotary (no parameters) or a learned table of S x d."""

    rope = "rope"
    learned = "learned"


class ParamCount(StrEnum):
    """Which parameters N means."""

    total = "total"
    non_embedding = "non_embedding"


class FlopCount(StrEnum):
    """Which FLOPs C means."""

    matmul = "matmul"
    sixnd = "6nd"
    palm = "palm"
    chinchilla = "chinchilla"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder-only transformer, pre-norm, without biases.

    ``heads * head_size`` may differ from ``d_model`` (six models of Hoffmann's Table A9 do).
    """

    layers: int
    d_model: int
    heads: int
    head_size: int
    ffw: int
    vocabulary: int
    sequence: int
    activation: Activation = Activation.gelu
    positions: Positions = Positions.rope
    tied_head: bool = True
    qk_norm: bool = False
    """Whether queries and keys pass an RMSNorm of their own over each head, with gains (Henry et al. 2020)."""

    def __post_init__(self) -> None:
        for name in ("layers", "d_model", "heads", "head_size", "ffw", "vocabulary", "sequence"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"model.{name}={value!r} is not a positive whole number; give one of 1 or more.")
        if self.positions is Positions.rope and self.head_size % 2:
            raise UserError(
                f"model.head_size={self.head_size} is odd, which rotary positions cannot turn; "
                "give an even size, or model.positions=learned."
            )

    @property
    def ffw_matrices(self) -> int:
        """Matrices of one feed-forward layer."""
        return 3 if self.activation is Activation.swiglu else 2

    @property
    def attention_width(self) -> int:
        """Heads times head size."""
        return self.heads * self.head_size

    def params_by_group(self) -> dict[str, int]:
        """Parameters by group; their sum is every trained number of the model."""
        return {
            "embedding": self.vocabulary * self.d_model,
            "positions": self.sequence * self.d_model if self.positions is Positions.learned else 0,
            "attention": self.layers * 4 * self.d_model * self.attention_width,
            "ffw": self.layers * self.ffw_matrices * self.d_model * self.ffw,
            "norms": (2 * self.layers + 1) * self.d_model + (2 * self.layers * self.head_size if self.qk_norm else 0),
            "head": 0 if self.tied_head else self.vocabulary * self.d_model,
        }

    @property
    def params_embedding(self) -> int:
        """Token table and learned positions."""
        groups = self.params_by_group()
        return groups["embedding"] + groups["positions"]

    @property
    def params_non_embedding(self) -> int:
        """Attention, feed-forward and norms."""
        groups = self.params_by_group()
        return groups["attention"] + groups["ffw"] + groups["norms"]

    @property
    def params_head(self) -> int:
        """The output matrix where it is untied, else 0."""
        return self.params_by_group()["head"]

    @property
    def params_total(self) -> int:
        """Non-embedding + embedding + untied head."""
        return sum(self.params_by_group().values())

    def params(self, count: ParamCount) -> int:
        """N under a convention."""
        return self.params_total if count is ParamCount.total else self.params_non_embedding

    @property
    def _layer_matrices(self) -> int:
        """Parameters of all layers' matrices (no norms)."""
        groups = self.params_by_group()
        return groups["attention"] + groups["ffw"]

    def flops_per_token(self, count: FlopCount = FlopCount.matmul) -> float:
        """Training FLOPs per token (forward and backward) under a convention."""
        attention = 2 * 2 * self.sequence * self.attention_width * self.layers  # scores and weighted values
        logits = 2 * self.d_model * self.vocabulary
        if count is FlopCount.matmul:
            return BACKWARD_AND_FORWARD * (2 * self._layer_matrices + attention + logits)
        if count is FlopCount.sixnd:
            return 6 * self.params_total
        if count is FlopCount.palm:
            head = self.vocabulary * self.d_model
            return 6 * (self.params_non_embedding + head) + BACKWARD_AND_FORWARD * attention
        embedding = 2 * self.vocabulary * self.d_model
        softmax = 3 * self.heads * self.sequence * self.layers
        return BACKWARD_AND_FORWARD * (embedding + 2 * self._layer_matrices + attention + softmax + logits)

    def flops(self, tokens: float, count: FlopCount = FlopCount.matmul) -> float:
        """Training FLOPs of ``tokens`` tokens under a convention."""
        return self.flops_per_token(count) * tokens


def params_gopher_family(shape: Shape) -> int:
    """N of a model of the Gopher family (Rae et al. 2021), as Hoffmann et al. 2022 quote N for Gopher and Chinchilla.

    Those models have relative positions (one more d x d matrix and two bias vectors a layer), biases, and LayerNorms
    with gain and bias; the head is tied. With this N the ratios of Hoffmann's Table A4 come out.
    """
    s = shape
    relative = s.d_model * s.attention_width + 2 * s.attention_width
    biases = 3 * s.attention_width + s.d_model + s.ffw + s.d_model
    norms = 4 * s.d_model
    per_layer = 4 * s.d_model * s.attention_width + 2 * s.d_model * s.ffw + relative + biases + norms
    return s.layers * per_layer + 2 * s.d_model + s.vocabulary * s.d_model

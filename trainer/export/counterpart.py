"""Our tensors as those of ``LlamaForCausalLM``, or with qk-norm ``Qwen3ForCausalLM``: names, order of rows, config.

Rotary positions turn neighbouring rows of q and k here, and there a row of the first half of a head with one of the
second; both are the same function when the rows are put into that order. Factors on products (as muP has them) go into
the matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from trainer.errors import UserError
from trainer.kernels import NORM_EPS
from trainer.model import Slot
from trainer.shape import Activation, Positions, Shape

ROPE_THETA = 10_000.0
NAMES = {"attention_out": "self_attn.o_proj", "ffw_out": "mlp.down_proj"}
NORMS = {"norm_attention": "input_layernorm", "norm_ffw": "post_attention_layernorm"}
HEAD_NORMS = {"norm_q": "self_attn.q_norm", "norm_k": "self_attn.k_norm"}


def check_counterpart(shape: Shape) -> None:
    """Refuse layouts that no model of ``transformers`` computes.

    Raises
    ------
    UserError
        Naming what has no counterpart.
    """
    wanted = {"activation": (shape.activation, Activation.swiglu), "positions": (shape.positions, Positions.rope)}
    for name, (value, needed) in wanted.items():
        if value is not needed:
            raise UserError(
                f"model.{name}={value.value} has no counterpart among the models of transformers that isoflop exports; "
                f"Llama's has model.{name}={needed.value}, as model=llama."
            )
    if shape.d_model % shape.heads:
        raise UserError(
            f"{shape.heads} heads do not divide the width {shape.d_model}, which transformers wants of Llama; export a "
            "point whose heads do, or set model.head_size so."
        )


def their_config(shape: Shape, *, end_of_text: int | None, tied: bool) -> dict[str, Any]:
    """``config.json``."""
    kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if shape.qk_norm:
        kind = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    return kind | {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.ffw,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": shape.sequence,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": end_of_text,
        "pad_token_id": None,
        "torch_dtype": "float32",
    }


def tied_there(shape: Shape, tensors: Mapping[str, tuple[Slot, Tensor]]) -> bool:
    """Whether head and token table are one there too: not if the head has a factor that lookups have not."""
    return shape.tied_head and tensors["embedding"][0].scale == 1


def their_tensors(shape: Shape, tensors: Mapping[str, tuple[Slot, Tensor]]) -> dict[str, Tensor]:
    """Our tensors under their names.

    Raises
    ------
    UserError
        If one of ours has no place there.
    """
    out = dict(_outer(shape, tensors))
    for name, (slot, tensor) in tensors.items():
        layer, _, part = name.partition(".")
        if not part:
            continue
        place = f"model.layers.{layer}"
        if part in NORMS:
            out[f"{place}.{NORMS[part]}.weight"] = tensor
        elif part in HEAD_NORMS:
            out[f"{place}.{HEAD_NORMS[part]}.weight"] = halves(tensor[:, None], 1)[:, 0]
        elif part in NAMES:
            out[f"{place}.{NAMES[part]}.weight"] = tensor * slot.scale
        elif part == "qkv":
            q, k, v = (tensor * slot.scale).chunk(3)
            out[f"{place}.self_attn.q_proj.weight"] = halves(q, shape.heads)
            out[f"{place}.self_attn.k_proj.weight"] = halves(k, shape.heads)
            out[f"{place}.self_attn.v_proj.weight"] = v
        elif part == "ffw_in":
            gate, value = (tensor * slot.scale).chunk(2)
            out[f"{place}.mlp.gate_proj.weight"], out[f"{place}.mlp.up_proj.weight"] = gate, value
        else:
            raise UserError(f"the model's tensor {name} has no counterpart in transformers; it cannot be exported.")
    return out


def halves(rows: Tensor, heads: int) -> Tensor:
    """Each head's rows (H k, d), neighbouring pairs turned together, with the first of all pairs before the second."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _outer(shape: Shape, tensors: Mapping[str, tuple[Slot, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    slot, embedding = tensors["embedding"]
    yield "model.embed_tokens.weight", embedding
    yield "model.norm.weight", tensors["norm_out"][1]
    if not shape.tied_head:
        head_slot, head = tensors["head"]
        yield "lm_head.weight", head * head_slot.scale
    elif not tied_there(shape, tensors):
        yield "lm_head.weight", embedding * slot.scale
    known = {"embedding", "norm_out", "head"}
    for name in tensors:
        if "." not in name and name not in known:
            raise UserError(f"the model's tensor {name} has no counterpart in transformers; it cannot be exported.")

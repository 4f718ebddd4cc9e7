"""Latent attention: queries, keys and values through narrow inner states, part of each head rotated (DeepSeek-V2)."""

from __future__ import annotations

from typing import Any

from ....configuration import MoebaConfig
from ...config_rows import Computed, ConfigRow, Fixed, Pair, pairs
from ...rows import Row, renamed, same
from .fields import ATTENTION_BIAS, SIZES, without
from .tensors import ATTENTION_BLOCK, linears


def head_parts(rope_width: str = "qk_rope_head_dim") -> Computed:
    """The passing and the rotated part of a head.

    Args:
        rope_width: `qk_rope_head_dim` or `qk_head_dim`, whichever the stock code calls `head_dim`.
    """

    def to_ours(native: Any) -> dict[str, Any]:
        rotated, whole = native["qk_rope_head_dim"], native["qk_nope_head_dim"] + native["qk_rope_head_dim"]
        expected = whole if rope_width == "qk_head_dim" else rotated
        if native["head_dim"] not in (None, expected):
            raise ValueError(f"head_dim={native['head_dim']} is supported at {rope_width}={expected} only")
        return {"head_dim": whole, "qk_rope_head_dim": rotated}

    def to_theirs(config: MoebaConfig) -> dict[str, Any]:
        rotated = config.rotary_head_dim
        return {"qk_nope_head_dim": config.head_dim - rotated, "qk_rope_head_dim": rotated}

    return Computed(("qk_nope_head_dim", "qk_rope_head_dim", "head_dim"), to_ours, to_theirs)


# The inner norms have an epsilon of their own.
LATENT_SIZES: tuple[ConfigRow, ...] = (
    *without(SIZES, "head_dim"),
    *pairs("q_lora_rank", "kv_lora_rank", "v_head_dim"),
    Pair("rms_norm_eps", "norm_eps"),
    ATTENTION_BIAS,
    Fixed("attention_type", "latent"),
    Fixed("qk_norm_eps", 1e-6),
)
ROPE_INTERLEAVE = Pair("rope_interleave", "rope_interleave", ours_from=bool)


def latent_attention(*turned: Any) -> tuple[Row, ...]:
    """Latent attention's tensors.

    Args:
        turned: operations on the rows of queries and of the shared key, in this order, if there are any.
    """
    query, key = turned or (None, None)
    plain = linears(ATTENTION_BLOCK, ATTENTION_BLOCK, "q_a_proj", "kv_b_proj", "o_proj")
    parts = (("q_proj.weight", query), ("q_b_proj.weight", query),
             ("kv_a_proj_with_mqa.weight", key), ("kv_a_proj_with_mqa.bias", key))  # fmt: skip
    rows = [
        renamed(f"{ATTENTION_BLOCK}.{name}", f"{ATTENTION_BLOCK}.{name}", *([step] if step else []))
        for name, step in parts
    ]
    return (
        *rows,
        *plain,
        *same(f"{ATTENTION_BLOCK}.q_a_layernorm.weight", f"{ATTENTION_BLOCK}.kv_a_layernorm.weight"),
    )

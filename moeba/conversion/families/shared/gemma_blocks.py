"""Gemma's blocks: weights of norms stored around 1, scaled embeddings, norms on both sides of each branch."""

from __future__ import annotations

from typing import Any

from ....configuration import MoebaConfig
from ...config_rows import Computed, ConfigRow, Fixed, Pair, pairs
from ...rows import Row, same
from .fields import ATTENTION_BIAS, SIZES, without
from .layer_kinds import LISTED_WINDOW
from .tensors import LAYER, PRE_NORMS


def _causal(native: Any) -> dict[str, Any]:
    if native["use_bidirectional_attention"]:
        raise ValueError(
            f"use_bidirectional_attention={native['use_bidirectional_attention']} is not supported: "
            "a token of a causal language model sees no later ones"
        )
    return {}


CAUSAL = Computed(
    ("use_bidirectional_attention",), _causal, lambda config: {"use_bidirectional_attention": False}
)

# What all Gemmas share.
NORMS_AND_EMBEDDINGS: tuple[ConfigRow, ...] = (
    Pair("rms_norm_eps", "norm_eps"),
    Fixed("norm_type", "rmsnorm_unit_offset"),
    Computed((), lambda native: {"embedding_multiplier": native["hidden_size"] ** 0.5}, lambda config: {}),
    Fixed("round_embedding_multiplier", True),
)


def _query_scalar(config: MoebaConfig) -> dict[str, int]:
    multiplier = config.attention_multiplier
    return {
        "query_pre_attn_scalar": config.head_dim if multiplier is None else round(float(multiplier) ** -2)
    }


# What Gemma 2 added and its successors kept.
SINCE_GEMMA2: tuple[ConfigRow, ...] = (
    *without(SIZES, "hidden_act"),
    *pairs("final_logit_softcapping"),
    Pair("hidden_activation", "hidden_act"),
    Computed(
        ("query_pre_attn_scalar",),
        lambda native: {"attention_multiplier": native["query_pre_attn_scalar"] ** -0.5},
        _query_scalar,
    ),
    ATTENTION_BIAS,
    LISTED_WINDOW,
    *NORMS_AND_EMBEDDINGS,
)
SANDWICH_NORMS: tuple[Row, ...] = (
    *PRE_NORMS,
    *same(f"{LAYER}.pre_feedforward_layernorm.weight", f"{LAYER}.post_feedforward_layernorm.weight"),
)

"""Gemma 2: Gemma with norms on both sides of each branch, softcaps and sliding windows (Gemma Team 2024)."""

from __future__ import annotations

from ...configuration import MoebaConfig
from ..config_rows import Computed, ConfigRow, Fixed, Pair, pairs
from ..family import Family
from ..rows import same
from .gemma import CAUSAL, NORMS_AND_EMBEDDINGS
from .shared_fields import ATTENTION_BIAS, LISTED_WINDOW, SIZES, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, LAYER, PRE_NORMS


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

SANDWICH_NORMS = (
    *PRE_NORMS,
    *same(f"{LAYER}.pre_feedforward_layernorm.weight", f"{LAYER}.post_feedforward_layernorm.weight"),
)

FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    kind="dense",
    config_rows=(
        *SINCE_GEMMA2,
        *pairs("attn_logit_softcapping"),
        CAUSAL,
        Fixed("block_order", "sandwich_norm"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *SANDWICH_NORMS),
)

"""Qwen2-MoE: Qwen2's block with many small experts and a gated shared one; some layers may stay dense (Qwen 2024)."""

from typing import Any

from ..config_rows import Computed, Fixed, Pair, pairs
from ..family import Family
from ..rows import same
from .qwen3_moe import LAYER_KINDS
from .shared_fields import ROUTER_LOSS, SHARED_WIDTH, SIZES, UNLISTED_HEAD_DIM, WINDOW_BY_LAYER, without
from .shared_tensors import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    LAYER,
    PRE_NORMS,
    ROUTED_EXPERTS,
    shared_expert,
)


def _window(native: Any) -> dict[str, Any]:
    # The stock config says "off" with 0.
    return WINDOW_BY_LAYER.to_ours({**native, "sliding_window": native["sliding_window"] or None})


FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES, "head_dim"),
        UNLISTED_HEAD_DIM,
        *pairs("moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob"),
        *ROUTER_LOSS,
        Pair("rms_norm_eps", "norm_eps"),
        Pair("qkv_bias", "attention_bias"),
        Fixed("attention_output_bias", False),
        LAYER_KINDS,
        Computed(WINDOW_BY_LAYER.theirs, _window, WINDOW_BY_LAYER.theirs_from),
        SHARED_WIDTH,
        Fixed("shared_expert_gate", True),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *PRE_NORMS,
        *GATED_MLP,
        *same(f"{LAYER}.mlp.gate.weight", f"{LAYER}.mlp.shared_expert_gate.weight"),
        *shared_expert(),
        *ROUTED_EXPERTS,
    ),
)

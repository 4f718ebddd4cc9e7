"""Qwen2-MoE: Qwen2's block with many small experts and a gated shared one; some layers may stay dense (Qwen 2024)."""

from typing import Any

from ..config_rows import Computed, Fixed, Pair, pairs
from ..family import Family
from ..rows import same
from .shared.experts import MIXED_BLOCK, ROUTER_LOSS, SHARED_WIDTH
from .shared.fields import SIZES_HEAD_DIM_UNLISTED
from .shared.layer_kinds import SPARSE_BY_STEP, WINDOW_BY_LAYER
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, shared_expert


def _window(native: Any) -> dict[str, Any]:
    # The stock config says "off" with 0.
    return WINDOW_BY_LAYER.to_ours({**native, "sliding_window": native["sliding_window"] or None})


FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    kind="moe",
    config_rows=(
        *SIZES_HEAD_DIM_UNLISTED,
        *pairs("moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob"),
        *ROUTER_LOSS,
        Pair("rms_norm_eps", "norm_eps"),
        Pair("qkv_bias", "attention_bias"),
        Fixed("attention_output_bias", False),
        SPARSE_BY_STEP,
        Computed(WINDOW_BY_LAYER.theirs, _window, WINDOW_BY_LAYER.theirs_from),
        SHARED_WIDTH,
        Fixed("shared_expert_gate", True),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *MIXED_BLOCK,
        *shared_expert(),
        *same(f"{LAYER}.mlp.shared_expert_gate.weight"),
    ),
)

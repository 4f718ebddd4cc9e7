"""Qwen3-MoE: Qwen3's block with many small experts; some layers may stay dense (Yang et al. 2025)."""

from typing import Any

from ..config_rows import Computed, Fixed, Pair, pairs
from ..family import Family
from .shared.experts import MIXED_BLOCK, ROUTER_LOSS
from .shared.fields import SIZES
from .shared.layer_kinds import SPARSE_BY_STEP, UNIFORM_WINDOW
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, QK_NORM


def _window(native: Any) -> dict[str, Any]:
    return UNIFORM_WINDOW.to_ours(
        native if native["use_sliding_window"] else {**native, "sliding_window": None}
    )


FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    kind="moe",
    config_rows=(
        *SIZES,
        *pairs("attention_bias", "moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob"),
        *ROUTER_LOSS,
        Pair("rms_norm_eps", "norm_eps"),
        SPARSE_BY_STEP,
        Computed(
            ("use_sliding_window", "sliding_window"),
            _window,
            lambda config: {
                "use_sliding_window": config.sliding_window is not None,
                "sliding_window": config.sliding_window,
            },
        ),
        Fixed("qk_norm", "head"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *MIXED_BLOCK),
)

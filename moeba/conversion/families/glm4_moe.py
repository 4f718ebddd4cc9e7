"""GLM-4.5: partly rotated heads, and DeepSeek-V3's experts (GLM team 2025)."""

from ..config_rows import Computed, Fixed, Pair, pairs
from ..family import Family
from .deepseek import (
    BALANCED_BLOCK,
    GROUPED_EXPERTS,
    PREDICTION_COUNT,
    PREDICTION_LAYERS,
    ROUTED_AS,
    sparse_layers,
)
from .shared_fields import PARTIAL_ROPE, SIZES, UNLISTED_HEAD_DIM, rotated_share, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, QK_NORM

FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES, "head_dim", "rope_parameters"),
        UNLISTED_HEAD_DIM,
        PARTIAL_ROPE,
        rotated_share(),
        *pairs("attention_bias"),
        Fixed("attention_output_bias", False),
        Pair("rms_norm_eps", "norm_eps"),
        Computed(
            ("use_qk_norm",),
            lambda native: {"qk_norm": "head" if native["use_qk_norm"] else "none"},
            lambda config: {"use_qk_norm": config.qk_norm == "head"},
        ),
        *GROUPED_EXPERTS,
        sparse_layers("first_k_dense_replace"),
        PREDICTION_COUNT,
        *ROUTED_AS,
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *BALANCED_BLOCK),
    dropped=(PREDICTION_LAYERS,),
)

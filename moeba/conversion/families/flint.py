"""Flint: attention sinks in every layer, rope in the sliding ones, and a router held in float32 (RecursiveSI)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from ..rows import renamed, same
from .qwen3_moe import LAYER_KINDS
from .shared_fields import (
    ATTENTION_BIAS,
    LISTED_WINDOW,
    ROTATED_WHERE_SLIDING,
    ROUTER_LOSS,
    ROUTER_PARAM_DTYPE,
    SHARED_WIDTH,
    SIZES,
)
from .shared_tensors import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    LAYER,
    PRE_NORMS,
    QK_NORM,
    ROUTED_EXPERTS,
    shared_expert,
)

FAMILY = Family(
    model_type="flint",
    architecture="FlintForCausalLM",
    kind="moe",
    config_rows=(
        *SIZES,
        *pairs("moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob"),
        *ROUTER_LOSS,
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        LAYER_KINDS,
        LISTED_WINDOW,
        ROTATED_WHERE_SLIDING,
        SHARED_WIDTH,
        Fixed("norm_type", "rmsnorm_float32"),
        Fixed("qk_norm", "head"),
        Fixed("attention_sink_layer_types", ["full_attention", "sliding_attention"]),
        Fixed("attention_score_dtype", "float32"),
        Fixed("scoring_func", "sigmoid"),
        ROUTER_PARAM_DTYPE,
        Fixed("router_matmul_dtype", "float32"),
        Fixed("router_weight_dtype", "float32"),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *QK_NORM,
        *PRE_NORMS,
        *GATED_MLP,
        renamed(f"{LAYER}.self_attn.softmax_offset", f"{LAYER}.self_attn.sinks"),
        *same(f"{LAYER}.mlp.gate.weight"),
        *ROUTED_EXPERTS,
        *shared_expert(),
    ),
)

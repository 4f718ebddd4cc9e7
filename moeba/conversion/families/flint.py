"""Flint: attention sinks in every layer, rope in the sliding ones, and a router held in float32 (RecursiveSI)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from ..rows import renamed
from .shared.experts import MIXED_BLOCK, ROUTER_LOSS, ROUTER_PARAM_DTYPE, SHARED_WIDTH
from .shared.fields import ATTENTION_BIAS, SIZES
from .shared.layer_kinds import LISTED_WINDOW, ROTATED_WHERE_SLIDING, SPARSE_BY_STEP
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, QK_NORM, shared_expert

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
        SPARSE_BY_STEP,
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
        renamed(f"{LAYER}.self_attn.softmax_offset", f"{LAYER}.self_attn.sinks"),
        *MIXED_BLOCK,
        *shared_expert(),
    ),
)

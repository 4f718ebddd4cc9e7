"""Hunyuan 3: normalised query and key heads, and experts balanced by a bias that only chooses (Tencent)."""

from ..config_rows import Fixed, Inert, Pair, Stated, pairs
from ..family import Family
from ..rows import renamed
from .shared.experts import (
    LEADING_DENSE,
    NO_FURTHER_LAYERS,
    PREDICTION_LAYERS,
    SCALED_EXPERTS,
    SIGMOID_ROUTER,
    sparse_layers,
)
from .shared.fields import ATTENTION_BIAS, SIZES, without
from .shared.tensors import (
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
    model_type="hy_v3",
    architecture="HYV3ForCausalLM",
    kind="moe",
    config_rows=(
        *SIZES,
        *pairs("mlp_bias"),
        *without(SCALED_EXPERTS, "routed_scaling_factor"),
        *SIGMOID_ROUTER,
        Pair("router_scaling_factor", "routed_scaling_factor"),
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        sparse_layers("mlp_layer_types", "num_experts", "num_shared_experts"),
        Inert("enable_moe_fp32_combine", "one sum of two numbers, rounded once either way"),
        Fixed("qk_norm", "head"),
        LEADING_DENSE,
        NO_FURTHER_LAYERS,
        Stated(
            "expert_hidden_dim",
            lambda config: config.moe_intermediate_size,
            "vLLM takes the experts' width from it",
        ),
        Stated("route_norm", True, "vLLM and SGLang fail where it is not said"),
        Stated("qk_norm", True, "vLLM and SGLang leave the norms out where it is not said"),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *QK_NORM,
        *PRE_NORMS,
        *GATED_MLP,
        renamed(f"{LAYER}.mlp.router.gate.weight", f"{LAYER}.mlp.gate.weight"),
        renamed(f"{LAYER}.mlp.expert_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
        *ROUTED_EXPERTS,
        *shared_expert("shared_mlp"),
    ),
    dropped=(PREDICTION_LAYERS,),
)

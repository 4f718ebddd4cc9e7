"""AFMoE: gated attention between two norms, and many experts beside shared ones (Arcee 2025)."""

from ..config_rows import Fixed, Inert, Pair, Stated, pairs
from ..family import Family
from ..rows import renamed
from .shared.experts import NO_ROUTER_LOSS, sparse_layers
from .shared.fields import ATTENTION_BIAS, SIZES, scaled_embeddings
from .shared.layer_kinds import LISTED_WINDOW, ROTATED_WHERE_SLIDING
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
    model_type="afmoe",
    architecture="AfmoeForCausalLM",
    kind="moe",
    config_rows=(
        *SIZES,
        *pairs("moe_intermediate_size", "num_experts_per_tok"),
        Pair("route_scale", "routed_scaling_factor"),
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        LISTED_WINDOW,
        ROTATED_WHERE_SLIDING,
        sparse_layers("num_dense_layers", "num_experts", "num_shared_experts"),
        scaled_embeddings("mup_enabled"),
        Inert("global_attn_every_n_layers", "what layer_types is made from where it is not given"),
        Fixed("norm_type", "rmsnorm_float32"),
        Fixed("block_order", "sandwich_norm"),
        Fixed("qk_norm", "head"),
        Fixed("attention_output_gate", "sigmoid"),
        Fixed("scoring_func", "sigmoid"),
        Fixed("router_selection_bias", True),
        Fixed("norm_topk_eps", 1e-20),
        Fixed("router_weight_dtype", "float32"),
        *NO_ROUTER_LOSS,
        Stated("score_func", "sigmoid", "vLLM routes by it, and llama.cpp's converter writes it down"),
        Stated(
            "route_norm", True, "vLLM renormalises where it says so, and llama.cpp's converter writes it down"
        ),
        *(
            Stated(name, 1, "vLLM chooses experts within groups")
            for name in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups")
        ),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *QK_NORM,
        renamed(f"{LAYER}.self_attn.gate_proj.weight", f"{LAYER}.self_attn.g_proj.weight"),
        *PRE_NORMS,
        renamed(f"{LAYER}.pre_mlp_layernorm.weight", f"{LAYER}.pre_feedforward_layernorm.weight"),
        renamed(f"{LAYER}.post_mlp_layernorm.weight", f"{LAYER}.post_feedforward_layernorm.weight"),
        *GATED_MLP,
        renamed(f"{LAYER}.mlp.router.gate.weight", f"{LAYER}.mlp.gate.weight"),
        renamed(f"{LAYER}.mlp.expert_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
        *ROUTED_EXPERTS,
        *shared_expert("shared_experts"),
    ),
)

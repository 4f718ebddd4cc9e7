"""MiniMax-M2: many small experts with sigmoid scores, a norm over all heads, and partial rope (MiniMax 2025)."""

from ..config_rows import Computed, Fixed, Pair, pairs
from ..family import Family
from ..rows import renamed
from .shared_fields import PARTIAL_ROPE, ROUTER_LOSS, SIZES, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, PRE_NORMS, QK_NORM, per_expert

MOE = f"{LAYER}.block_sparse_moe"

FAMILY = Family(
    model_type="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES, "intermediate_size", "rope_parameters"),
        *pairs("num_experts_per_tok", "router_jitter_noise"),
        *ROUTER_LOSS,
        Pair("intermediate_size", "moe_intermediate_size"),
        Pair("num_local_experts", "num_experts"),
        Pair("rms_norm_eps", "norm_eps"),
        # The width of the rotated part becomes a factor in the settings when the config is read.
        Computed(("rope_parameters", "rotary_dim"), PARTIAL_ROPE.to_ours, PARTIAL_ROPE.to_theirs),
        Fixed("qk_norm", "full"),
        Fixed("scoring_func", "sigmoid"),
        Fixed("router_selection_bias", True),
        Fixed("router_weight_dtype", "float32"),
        Fixed("topk_sorted", False),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *QK_NORM,
        *PRE_NORMS,
        renamed(f"{MOE}.gate.weight", f"{LAYER}.mlp.gate.weight"),
        renamed(f"{MOE}.e_score_correction_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
        *per_expert("block_sparse_moe", gate="w1", up="w3", down="w2"),
    ),
    leftovers=(
        "attn_type_list", "layernorm_full_attention_beta", "layernorm_linear_attention_beta", "layernorm_mlp_beta",
        "mlp_intermediate_size", "mtp_transformer_layers", "num_mtp_modules", "shared_moe_mode", "use_mtp",
    ),
    restated=(
        ("qk_norm_type", "per_layer"), ("scoring_func", "sigmoid"), ("shared_intermediate_size", 0),
        ("sliding_window", None), ("use_qk_norm", True), ("use_routing_bias", True),
    ),
)  # fmt: skip

"""MiniMax-M2: many small experts with sigmoid scores, a norm over all heads, and partial rope (MiniMax 2025)."""

from ...configuration import MoebaConfig
from ...configuration.model_facts import rope_of, rotated_width
from ..config_rows import Fixed, Pair, Stated, pairs
from ..family import Family
from ..rows import renamed
from .shared.experts import BLOCK_SPARSE_MOE, LOCAL_EXPERTS, MORE_TOKENS, ROUTER_LOSS
from .shared.fields import SIZES, without
from .shared.rope import PARTIAL_ROPE
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, PRE_NORMS, QK_NORM


def _rotary_dim(config: MoebaConfig) -> int | None:
    return rotated_width(config) if rope_of(config) else None


def _full_attention(config: MoebaConfig) -> list[int]:
    return [1] * config.num_hidden_layers


FAMILY = Family(
    model_type="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES, "intermediate_size", "rope_parameters"),
        *pairs("num_experts_per_tok", "router_jitter_noise"),
        *ROUTER_LOSS,
        *LOCAL_EXPERTS,
        Pair("rms_norm_eps", "norm_eps"),
        # The width of the rotated part becomes a factor in the settings when the config is read.
        PARTIAL_ROPE,
        Stated("rotary_dim", _rotary_dim, "vLLM and SGLang read this width, not the factor"),
        Fixed("qk_norm", "full"),
        Fixed("scoring_func", "sigmoid"),
        Fixed("router_selection_bias", True),
        Fixed("router_weight_dtype", "float32"),
        Fixed("topk_sorted", False),
        Stated("scoring_func", "sigmoid", "vLLM and SGLang route by it"),
        Stated("use_routing_bias", True, "vLLM and SGLang leave the bias out of the choice where it is not said"),
        Stated("use_qk_norm", True, "SGLang leaves the norms out where it is not said"),
        Stated("qk_norm_type", "per_layer", "SGLang norms all heads together where it says so"),
        Stated("shared_intermediate_size", 0, "the authors' code has a shared expert of this width"),
        Stated("attn_type_list", _full_attention, "the authors' code has linear attention where it says 0"),
        # generate() of transformers and the engines look for layers that no export has.
        Stated("use_mtp", False, f"a layer past the last {MORE_TOKENS}", required=False),
        Stated("num_mtp_modules", 0, f"a layer past the last {MORE_TOKENS}", required=False),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *QK_NORM,
        *PRE_NORMS,
        *BLOCK_SPARSE_MOE,
        renamed(f"{LAYER}.block_sparse_moe.e_score_correction_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
    ),
)  # fmt: skip

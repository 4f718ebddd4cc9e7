"""Experts: how many and how wide, what their router loses, and the routers of Mixtral and DeepSeek."""

from __future__ import annotations

from typing import Any

from ....configuration import MoebaConfig
from ....library.native_models import holds_in_float32
from ...config_rows import Computed, ConfigRow, Fixed, Pair, Stated, pairs
from ...rows import Dropped, Row, renamed, same
from .fields import SLICED
from .latent_attention import LATENT_SIZES, ROPE_INTERLEAVE, head_parts
from .tensors import GATED_MLP, LAYER, MLP, PRE_NORMS, ROUTER_AND_EXPERTS, per_expert, shared_expert

# The balance loss of transformers' own models: there with the router logits, in evaluation too.
ROUTER_LOSS: tuple[ConfigRow, ...] = (
    Pair("output_router_logits", "output_router_logits", ours_from=bool),
    Pair("router_aux_loss_coef", "router_aux_loss_coef", ours_from=lambda factor: factor or 0.0),
    Fixed("router_loss", "with_router_logits"),
)
# The stock model shows its router logits and makes no loss of them.
NO_ROUTER_LOSS: tuple[ConfigRow, ...] = (*pairs("output_router_logits"), Fixed("router_loss", "none"))

# OLMoE's config, and Mixtral's.
OLMOE_EXPERTS: tuple[ConfigRow, ...] = (
    *pairs("num_experts", "num_experts_per_tok", "norm_topk_prob"),
    *ROUTER_LOSS,
    Pair("intermediate_size", "moe_intermediate_size"),
)
LOCAL_EXPERTS: tuple[ConfigRow, ...] = (
    Pair("intermediate_size", "moe_intermediate_size"),
    Pair("num_local_experts", "num_experts"),
)
# Mixtral's tensors.
BLOCK_SPARSE_MOE: tuple[Row, ...] = (
    renamed(f"{LAYER}.block_sparse_moe.gate.weight", f"{MLP}.gate.weight"),
    *per_expert("block_sparse_moe", gate="w1", up="w3", down="w2"),
)


def _shared_width(native: Any) -> dict[str, Any]:
    width = native["shared_expert_intermediate_size"]
    if not width:
        raise ValueError(f"shared_expert_intermediate_size={width}: a shared expert without neurons")
    return {"shared_expert_intermediate_size": width}


def _router_param_dtype(native: Any) -> dict[str, Any]:
    return {
        "router_param_dtype": "float32" if holds_in_float32(native["model_type"], "gate.weight") else "model"
    }


# Releases of transformers differ in which families hold the router's weight in float32: the stock class is asked.
ROUTER_PARAM_DTYPE = Computed((), _router_param_dtype, lambda config: {})

# One shared expert, in each sparse layer.
SHARED_WIDTH = Computed(
    ("shared_expert_intermediate_size",),
    _shared_width,
    lambda config: {"shared_expert_intermediate_size": config.shared_expert_intermediate_size},
)


def shared_experts_by_count(width: str, count: str) -> Computed:
    """The width of an expert, and the number of shared ones, which are computed as a single wide one."""
    return Computed(
        (width, count),
        lambda native: {
            "moe_intermediate_size": native[width],
            "shared_expert_intermediate_size": native[width] * native[count],
        },
        lambda config: {
            width: config.moe_intermediate_size,
            count: config.shared_expert_intermediate_size // config.moe_intermediate_size,
        },
    )


def sparse_layers(
    layers: str | None, experts: str = "n_routed_experts", shared: str = "n_shared_experts"
) -> Computed:
    """Which layers have experts, and how many, routed and shared.

    Args:
        layers: the field with the number of leading dense layers, or `mlp_layer_types`; None where all are sparse.
        experts, shared: the fields with the numbers of experts.
    """
    listed = layers == "mlp_layer_types"

    def to_ours(native: Any) -> dict[str, Any]:
        dense: Any = 0 if layers is None else native[layers]
        numbers = range(native["num_hidden_layers"])
        kinds: list[str] = dense if listed else ["dense" if i < dense else "sparse" for i in numbers]
        if "sparse" not in kinds:  # experts that no layer has would contradict `mlp_layer_types`
            return {"mlp_layer_types": list(kinds)}
        if not native[shared]:
            raise ValueError(
                f"{shared}={native[shared]}: the stock model has a shared expert in every sparse layer"
            )
        width = native[shared] * native["moe_intermediate_size"]
        found = {"num_experts": native[experts], "shared_expert_intermediate_size": width}
        return {"mlp_layer_types": list(kinds), **found}

    def to_theirs(config: MoebaConfig) -> dict[str, Any]:
        kinds = list(config.mlp_layer_types)
        dense = kinds.index("sparse") if "sparse" in kinds else len(kinds)
        count = config.shared_expert_intermediate_size // config.moe_intermediate_size
        counts = {experts: config.num_experts, shared: count}
        return counts if layers is None else {layers: kinds if listed else dense, **counts}

    return Computed((*([layers] if layers else []), experts, shared), to_ours, to_theirs)


def _groups(native: Any) -> dict[str, Any]:
    groups, experts = native["n_group"], native.get("n_routed_experts") or native.get("num_experts")
    if not groups or not native["topk_group"]:
        raise ValueError(f"n_group={groups}, topk_group={native['topk_group']}: the stock router needs both")
    if experts and experts // groups < 2:
        raise ValueError(
            f"n_group={groups} of {experts} experts: the stock router scores a group by its best two experts"
        )
    return {"n_group": groups, "topk_group": native["topk_group"]}


GROUPS = Computed(
    ("n_group", "topk_group"),
    _groups,
    lambda config: {"n_group": config.n_group, "topk_group": config.topk_group},
)
SCALED_EXPERTS: tuple[ConfigRow, ...] = (
    *pairs("moe_intermediate_size", "num_experts_per_tok", "routed_scaling_factor"),
    *NO_ROUTER_LOSS,
    Fixed("topk_sorted", False),
    ROUTER_PARAM_DTYPE,
)
# DeepSeek-V3's router: sigmoid scores, and a bias that counts for choosing only.
SIGMOID_ROUTER: tuple[ConfigRow, ...] = (
    Fixed("scoring_func", "sigmoid"),
    Fixed("router_selection_bias", True),
    Fixed("norm_topk_eps", 1e-20),
    Fixed("router_matmul_dtype", "float32"),
    Fixed("router_weight_dtype", "float32"),
)
GROUPED_EXPERTS: tuple[ConfigRow, ...] = (
    *SCALED_EXPERTS,
    Pair("norm_topk_prob", "norm_topk_prob", ours_from=bool),
    GROUPS,
    *SIGMOID_ROUTER,
)
# DeepSeek-V3's config, but for which layers are dense.
LATENT_EXPERTS: tuple[ConfigRow, ...] = (
    *LATENT_SIZES,
    *GROUPED_EXPERTS,
    head_parts(),
    ROPE_INTERLEAVE,
    SLICED,
)
# How Sarvam's own code calls what its models always do.
SARVAM_ROUTER: tuple[ConfigRow, ...] = (
    Stated("score_function", "sigmoid", "the authors' code scores experts by it"),
    Stated(
        "moe_router_enable_expert_bias", True, "the authors' code adds the bias of the choice where it is set"
    ),
    Stated("router_dtype", "fp32", "the authors' code scores in it"),
)

SELECTION_BIAS = same(f"{MLP}.gate.e_score_correction_bias")
# A layer without its attention: dense or with experts; with shared ones too; and with a bias that only chooses.
MIXED_BLOCK: tuple[Row, ...] = (*PRE_NORMS, *GATED_MLP, *ROUTER_AND_EXPERTS)
SHARING_BLOCK: tuple[Row, ...] = (*MIXED_BLOCK, *shared_expert("shared_experts"))
BALANCED_BLOCK: tuple[Row, ...] = (*SHARING_BLOCK, *SELECTION_BIAS)

MORE_TOKENS = "predicts further tokens, which the stock model leaves out when it loads"
PREDICTION_LAYERS = Dropped("model.layers.{beyond}.{rest}", f"of a layer past the last: it {MORE_TOKENS}")
PREDICTION_COUNT = Stated("num_mtp_layers", 0, f"each of these layers {MORE_TOKENS}", required=False)


def _leading_dense(config: MoebaConfig) -> int | None:
    kinds = list(config.mlp_layer_types or [])
    count = kinds.index("sparse") if "sparse" in kinds else len(kinds)
    return None if "dense" in kinds[count:] else count


LEADING_DENSE = Stated("first_k_dense_replace", _leading_dense, "engines count so which layers are dense")
EVERY_LAYER = Stated("moe_layer_freq", 1, "vLLM counts in such steps where experts are")
# Where no layers past the last follow, llama.cpp's converter and the engines must not look for any.
NO_FURTHER_LAYERS = Stated("num_nextn_predict_layers", 0, f"such a layer {MORE_TOKENS}", required=False)
# What vLLM and SGLang route by, and llama.cpp's converter writes down.
ROUTED_AS: tuple[ConfigRow, ...] = (
    Stated("scoring_func", "sigmoid", "engines take softmax where it is not said"),
    Stated("topk_method", "noaux_tc", "engines leave the bias out of the choice where it is not said"),
    EVERY_LAYER,
)

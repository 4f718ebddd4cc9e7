"""Rows that DeepSeek's models share with those built like them: latent attention, and experts in scored groups."""

from __future__ import annotations

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, ConfigRow, Fixed, Inert, Pair, Stated, pairs
from ..rows import Dropped, Row, renamed, same
from .shared_fields import ATTENTION_BIAS, NO_ROUTER_LOSS, ROUTER_PARAM_DTYPE, SIZES, without
from .shared_tensors import GATED_MLP, LAYER, PRE_NORMS, ROUTED_EXPERTS, linears, shared_expert


def head_parts(rope_width: str = "qk_rope_head_dim") -> Computed:
    """The passing and the rotated part of a head.

    Args:
        rope_width: `qk_rope_head_dim` or `qk_head_dim`, whichever the stock code calls `head_dim`.
    """

    def to_ours(native: Any) -> dict[str, Any]:
        rotated, whole = native["qk_rope_head_dim"], native["qk_nope_head_dim"] + native["qk_rope_head_dim"]
        expected = whole if rope_width == "qk_head_dim" else rotated
        if native["head_dim"] not in (None, expected):
            raise ValueError(f"head_dim={native['head_dim']} is supported at {rope_width}={expected} only")
        return {"head_dim": whole, "qk_rope_head_dim": rotated}

    def to_theirs(config: MoebaConfig) -> dict[str, Any]:
        rotated = config.rotary_head_dim
        return {"qk_nope_head_dim": config.head_dim - rotated, "qk_rope_head_dim": rotated}

    return Computed(("qk_nope_head_dim", "qk_rope_head_dim", "head_dim"), to_ours, to_theirs)


# The inner norms have an epsilon of their own.
LATENT_SIZES: tuple[ConfigRow, ...] = (
    *without(SIZES, "head_dim"),
    *pairs("q_lora_rank", "kv_lora_rank", "v_head_dim"),
    Pair("rms_norm_eps", "norm_eps"),
    ATTENTION_BIAS,
    Fixed("attention_type", "latent"),
    Fixed("qk_norm_eps", 1e-6),
)
ROPE_INTERLEAVE = Pair("rope_interleave", "rope_interleave", ours_from=bool)


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
EXPERTS: tuple[ConfigRow, ...] = (
    *pairs("moe_intermediate_size", "num_experts_per_tok", "routed_scaling_factor"),
    *NO_ROUTER_LOSS,
    Fixed("topk_sorted", False),
    ROUTER_PARAM_DTYPE,
)
# DeepSeek-V3's router: sigmoid scores, and a bias that counts for choosing only.
GROUPED_EXPERTS: tuple[ConfigRow, ...] = (
    *EXPERTS,
    Pair("norm_topk_prob", "norm_topk_prob", ours_from=bool),
    GROUPS,
    Fixed("scoring_func", "sigmoid"),
    Fixed("router_selection_bias", True),
    Fixed("norm_topk_eps", 1e-20),
    Fixed("router_matmul_dtype", "float32"),
    Fixed("router_weight_dtype", "float32"),
)
SLICED = Inert("pretraining_tp", "a way to slice the products of one training setup")

SELECTION_BIAS = same(f"{LAYER}.mlp.gate.e_score_correction_bias")
# All but attention and the routed experts, which may be stored fused.
BLOCK: tuple[Row, ...] = (
    *PRE_NORMS,
    *GATED_MLP,
    *same(f"{LAYER}.mlp.gate.weight"),
    *shared_expert("shared_experts"),
)
# All but attention.
BALANCED_BLOCK: tuple[Row, ...] = (*BLOCK, *ROUTED_EXPERTS, *SELECTION_BIAS)


def latent_attention(*turned: Any) -> tuple[Row, ...]:
    """Latent attention's tensors.

    Args:
        turned: operations on the rows of queries and of the shared key, in this order, if there are any.
    """
    query, key = turned or (None, None)
    attention = f"{LAYER}.self_attn"
    plain = linears(attention, attention, "q_a_proj", "kv_b_proj", "o_proj")
    parts = (("q_proj.weight", query), ("q_b_proj.weight", query),
             ("kv_a_proj_with_mqa.weight", key), ("kv_a_proj_with_mqa.bias", key))  # fmt: skip
    rows = [
        renamed(f"{attention}.{name}", f"{attention}.{name}", *([step] if step else []))
        for name, step in parts
    ]
    return (*rows, *plain, *same(f"{attention}.q_a_layernorm.weight", f"{attention}.kv_a_layernorm.weight"))


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

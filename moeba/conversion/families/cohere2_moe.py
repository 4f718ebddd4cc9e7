"""Command A+: Command R7B's block with experts; its dense first layers may rotate everywhere (Cohere 2026)."""

from dataclasses import replace
from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Inert, Only, Pair, pairs
from ..family import Family
from .shared.experts import LEADING_DENSE, NO_ROUTER_LOSS, shared_experts_by_count
from .shared.fields import ATTENTION_BIAS, SIZES, scaled_logits, without
from .shared.layer_kinds import LISTED_WINDOW, listed_kinds
from .shared.llama_blocks import COHERE_REORDERED, COHERE_TENSORS
from .shared.rope import ONE_ROPE, single_rope
from .shared.tensors import ROUTER_AND_EXPERTS, shared_expert

DENSE_START, NORM_EPS = "prefix_dense_sliding_window_pattern", ("layer_norm_eps", "rms_norm_eps")
ROUTERS = {"softmax": "topk_softmax", "sigmoid": "topk_sigmoid"}


def _norm(native: Any) -> dict[str, Any]:
    if native["rms_norm_eps"] is None:
        return {"norm_type": "layernorm_float32", "norm_eps": native["layer_norm_eps"]}
    return {"norm_type": "rmsnorm", "norm_eps": native["rms_norm_eps"]}


def _norm_back(config: MoebaConfig) -> dict[str, Any]:
    return {NORM_EPS[config.norm_type == "rmsnorm"]: config.norm_eps}


def _dense_width(native: Any) -> dict[str, Any]:
    dense = native["prefix_dense_intermediate_size"]
    return {"intermediate_size": native["intermediate_size"] if dense is None else dense}


def _rotation(native: Any) -> dict[str, Any]:
    kinds = zip(native["layer_types"], native["mlp_layer_types"], strict=True)
    forced = native[DENSE_START] == 1
    return {
        "rotary_layers": [kind == "sliding_attention" or forced and mlp == "dense" for kind, mlp in kinds]
    }


def _rotation_back(config: MoebaConfig) -> dict[str, Any]:
    layers = zip(config.layer_types, config.mlp_layer_types, config.rotary_layers, strict=True)
    still = any(
        kind != "sliding_attention" and mlp == "dense" and not rotates for kind, mlp, rotates in layers
    )
    return {DENSE_START: 2 if still else 1}


def _rope_back(config: MoebaConfig) -> dict[str, Any]:
    rope = single_rope(config) or {}
    return {"rope_parameters": rope} | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})


FAMILY = Family(
    model_type="cohere2_moe",
    architecture="Cohere2MoeForCausalLM",
    kind="moe",
    config_rows=(
        *without(SIZES, "intermediate_size", "rope_parameters"),
        scaled_logits("logit_scale", "multiply"),
        *pairs("num_experts_per_tok", "norm_topk_prob"),
        *NO_ROUTER_LOSS,
        ATTENTION_BIAS,
        LISTED_WINDOW,
        listed_kinds("num_experts"),
        Computed(NORM_EPS, _norm, _norm_back),
        shared_experts_by_count("intermediate_size", "num_shared_experts"),
        Computed(
            ("prefix_dense_intermediate_size",),
            _dense_width,
            lambda config: {"prefix_dense_intermediate_size": config.intermediate_size},
        ),
        Computed(("rope_parameters", "rope_theta"), ONE_ROPE.to_ours, _rope_back),
        Only("rope_scaling", None, "the stock code reads rope_parameters instead"),
        Computed((DENSE_START,), _rotation, _rotation_back),
        Inert("sliding_window_pattern", "old spelling of layer_types"),
        replace(LEADING_DENSE, required=False),  # old spelling of mlp_layer_types
        Pair("shared_expert_combination_strategy", "shared_expert_combination"),
        Pair(
            "expert_selection_fn",
            "router_type",
            ours_from=lambda name: ROUTERS.get(name, name),
            theirs_from=lambda name: next(
                (theirs for theirs, ours in ROUTERS.items() if ours == name), "softmax"
            ),
        ),
        Fixed("block_order", "parallel_stream_first"),
        Fixed("rotary_precision", "float32_product"),
    ),
    rows=(
        *COHERE_TENSORS,
        *ROUTER_AND_EXPERTS,
        *shared_expert("shared_experts"),
    ),
    reordered=COHERE_REORDERED,
)

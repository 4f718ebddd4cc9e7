"""Laguna: gated attention with as many heads as each layer wants, and a rope for each kind of layer (Poolside)."""

from typing import Any

from ...configuration import MoebaConfig
from ...configuration.model_facts import layer_view
from ..config_rows import Computed, Fixed, Only, Pair, pairs
from ..family import Family
from ..rows import renamed, same
from .shared_fields import (
    ATTENTION_BIAS,
    LISTED_WINDOW,
    ROUTER_LOSS,
    SHARED_WIDTH,
    SIZES,
    listed_kinds,
    rope_by_kind,
    without,
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


def _heads(native: Any) -> dict[str, Any]:
    counts = native["num_attention_heads_per_layer"] or [native["num_attention_heads"]]
    uneven = {i: {"num_attention_heads": count} for i, count in enumerate(counts) if count != counts[0]}
    return {"num_attention_heads": counts[0]} | ({"per_layer_config": uneven} if uneven else {})


def _heads_back(config: MoebaConfig) -> dict[str, Any]:
    counts = [layer_view(config, i).num_attention_heads for i in range(config.num_hidden_layers)]
    return {"num_attention_heads": counts[0], "num_attention_heads_per_layer": counts}


def _gate(native: Any) -> dict[str, Any]:
    per_head = native["gating"] is True or native["gating"] == "per-head"
    return {"attention_output_gate": "softplus_per_head" if per_head else "softplus"}


def _gate_back(config: MoebaConfig) -> dict[str, Any]:
    return {"gating": "per-element" if config.attention_output_gate == "softplus" else "per-head"}


FAMILY = Family(
    model_type="laguna",
    architecture="LagunaForCausalLM",
    kind="moe",
    rounds_otherwise=True,
    config_rows=(
        *without(SIZES, "num_attention_heads", "rope_parameters"),
        *pairs("moe_intermediate_size", "num_experts_per_tok"),
        *ROUTER_LOSS,
        Pair("moe_routed_scaling_factor", "routed_scaling_factor"),
        Pair("rms_norm_eps", "norm_eps"),
        Pair(
            "moe_router_logit_softcapping",
            "router_logit_softcapping",
            lambda cap: cap if cap > 0 else None,
            lambda cap: cap or 0.0,
        ),
        ATTENTION_BIAS,
        LISTED_WINDOW,
        SHARED_WIDTH,
        listed_kinds("num_experts"),
        rope_by_kind(1.0),
        Computed(("num_attention_heads", "num_attention_heads_per_layer"), _heads, _heads_back),
        Computed(("gating",), _gate, _gate_back),
        Only("moe_apply_router_weight_on_input", False, "the stock model refuses it too"),
        Fixed("qk_norm", "head"),
        Fixed("scoring_func", "sigmoid"),
        Fixed("router_selection_bias", True),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *QK_NORM,
        *PRE_NORMS,
        *GATED_MLP,
        *same(f"{LAYER}.self_attn.g_proj.weight", f"{LAYER}.mlp.gate.weight"),
        renamed(f"{LAYER}.mlp.experts.e_score_correction_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
        *ROUTED_EXPERTS,
        *shared_expert(),
    ),
    reordered="stock scales the sum of the experts' answers, not their weights",
)

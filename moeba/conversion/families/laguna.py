"""Laguna: gated attention with as many heads as each layer wants, and a rope for each kind of layer (Poolside)."""

from typing import Any

from ...configuration import MoebaConfig
from ...configuration.model_facts import layer_view
from ..config_rows import Computed, Fixed, Only, Pair, pairs
from ..family import Family
from ..rows import renamed, same
from .shared.experts import MIXED_BLOCK, ROUTER_LOSS, SHARED_WIDTH
from .shared.fields import ATTENTION_BIAS, SIZES, without
from .shared.layer_kinds import LISTED_WINDOW, each_layer, listed_kinds
from .shared.rope import rope_by_kind
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, QK_NORM, shared_expert


def _heads(native: Any) -> dict[str, Any]:
    counts = native["num_attention_heads_per_layer"] or [native["num_attention_heads"]]
    return each_layer("num_attention_heads", counts)


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
        *same(f"{LAYER}.self_attn.g_proj.weight"),
        *MIXED_BLOCK,
        renamed(f"{LAYER}.mlp.experts.e_score_correction_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
        *shared_expert(),
    ),
    reordered="stock scales the sum of the experts' answers, not their weights",
)

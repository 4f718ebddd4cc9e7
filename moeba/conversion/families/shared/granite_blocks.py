"""Granite's blocks: multipliers, experts in two stacked matrices, sliding layers with sinks."""

from __future__ import annotations

from typing import Any

from ....configuration import MoebaConfig
from ....configuration.model_facts import rope_of
from ...config_rows import Computed, ConfigRow, Fixed, Pair, pairs
from ...rows import Row, Split, renamed
from .experts import LOCAL_EXPERTS, ROUTER_LOSS
from .fields import ATTENTION_BIAS, SIZES_HEAD_DIM_UNLISTED, scaled_logits, without
from .layer_kinds import LISTED_WINDOW
from .rope import one_whole_rope
from .tensors import ATTENTION, EMBEDDINGS_AND_HEAD, LAYER, MLP, PRE_NORMS

BIASES_AND_SCALES: tuple[ConfigRow, ...] = (
    ATTENTION_BIAS,
    *pairs("mlp_bias", "embedding_multiplier", "residual_multiplier"),
    scaled_logits("logits_scaling", "divide"),
    Computed(
        ("attention_multiplier",),
        lambda native: {"attention_multiplier": native["attention_multiplier"]},
        lambda config: {
            "attention_multiplier": config.head_dim**-0.5
            if config.attention_multiplier is None
            else config.attention_multiplier
        },
    ),
)
GRANITE_FIELDS: tuple[ConfigRow, ...] = (
    *SIZES_HEAD_DIM_UNLISTED,
    Pair("rms_norm_eps", "norm_eps"),
    *BIASES_AND_SCALES,
)
GRANITE_EXPERTS: tuple[ConfigRow, ...] = (
    *pairs("num_experts_per_tok"),
    *ROUTER_LOSS,
    *LOCAL_EXPERTS,
    Fixed("router_type", "topk_softmax"),
)
# Experts take the place of all dense feed-forwards.
GRANITE_MOE_FIELDS: tuple[ConfigRow, ...] = (
    *without(GRANITE_FIELDS, "intermediate_size", "mlp_bias"),
    *GRANITE_EXPERTS,
)
MOE = f"{LAYER}.block_sparse_moe"
GRANITE_MOE_TENSORS: tuple[Row, ...] = (
    *EMBEDDINGS_AND_HEAD,
    *ATTENTION,
    *PRE_NORMS,
    renamed(f"{MOE}.router.layer.weight", f"{MLP}.gate.weight"),
    renamed(f"{MOE}.input_linear.weight", f"{MLP}.experts.gate_up_proj"),
    renamed(f"{MOE}.output_linear.weight", f"{MLP}.experts.down_proj"),
)

# An expert that every token visits.
SHARED_MLP_WIDTH = Pair("shared_intermediate_size", "shared_expert_intermediate_size")
SHARED_MLP: tuple[Row, ...] = (
    Row(
        (f"{LAYER}.shared_mlp.input_linear.weight",),
        tuple(f"{MLP}.shared_expert.{part}.weight" for part in ("gate_proj", "up_proj")),
        (Split(lambda config: [config.shared_expert_intermediate_size] * 2),),
    ),
    renamed(f"{LAYER}.shared_mlp.output_linear.weight", f"{MLP}.shared_expert.down_proj.weight"),
)


def _thetas(native: Any) -> dict[str, Any]:
    """A theta for each layer, 0 where it does not rotate; Moeba has one for each kind of layer."""
    thetas, rope = native["layer_rope_theta"], one_whole_rope(native)
    kinds: dict[str, set[float]] = {}
    for kind, theta in zip(native["layer_types"], thetas, strict=True):
        if theta:
            kinds.setdefault(kind, set()).add(theta)
    if any(len(found) > 1 for found in kinds.values()):
        raise ValueError(
            f"layer_rope_theta={thetas} gives layers of one kind different thetas other than 0, and Moeba has one "
            "theta for each kind in layer_types"
        )
    by_kind = {kind: {**rope, "rope_theta": found.pop()} for kind, found in kinds.items()}
    different = len(by_kind) > 1 and len({found["rope_theta"] for found in by_kind.values()}) > 1
    return {
        "rope_parameters": by_kind if different else next(iter(by_kind.values()), rope),
        "rotary_layers": [bool(theta) for theta in thetas],
    }


def _thetas_back(config: MoebaConfig) -> dict[str, Any]:
    rope = rope_of(config)
    ropes = [rope[kind] if config.rope_is_per_layer_type else rope for kind in config.layer_types]
    thetas = [
        rope["rope_theta"] if rotates else 0
        for rope, rotates in zip(ropes, config.rotary_layers, strict=True)
    ]
    return {"rope_parameters": ropes[0], "layer_rope_theta": thetas}


SLIDING_FIELDS: tuple[ConfigRow, ...] = (
    *without(GRANITE_FIELDS, "rope_parameters"),
    LISTED_WINDOW,
    Computed(("rope_parameters", "layer_rope_theta"), _thetas, _thetas_back),
    Fixed("attention_sink_layer_types", ["full_attention", "sliding_attention"]),
    Fixed("attention_sink_form", "output_share"),
)

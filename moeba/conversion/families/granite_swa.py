"""Granite with sliding windows: some layers slide, heads may attend to nothing, thetas by layer (IBM 2025)."""

from typing import Any

from ...configuration import MoebaConfig
from ...configuration.model_facts import rope_of
from ..config_rows import Computed, Fixed, Pair
from ..family import Family
from ..rows import same
from .granite import BIASES_AND_SCALES
from .shared_fields import LISTED_WINDOW, SIZES, UNLISTED_HEAD_DIM, one_rope, whole_heads, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, LAYER, PRE_NORMS


def _thetas(native: Any) -> dict[str, Any]:
    """A theta for each layer, 0 where it does not rotate; Moeba has one for each kind of layer."""
    thetas, rope = native["layer_rope_theta"], whole_heads(one_rope(native["rope_parameters"]))
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


FAMILY = Family(
    model_type="granite_swa",
    architecture="GraniteSWAForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim", "rope_parameters"),
        UNLISTED_HEAD_DIM,
        Pair("rms_norm_eps", "norm_eps"),
        *BIASES_AND_SCALES,
        LISTED_WINDOW,
        Computed(("rope_parameters", "layer_rope_theta"), _thetas, _thetas_back),
        Fixed("attention_sink_layer_types", ["full_attention", "sliding_attention"]),
        Fixed("attention_sink_form", "output_share"),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *GATED_MLP,
        *PRE_NORMS,
        *same(f"{LAYER}.self_attn.sinks"),
    ),
)

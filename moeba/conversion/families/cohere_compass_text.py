"""Compass: Command R7B's block with rope by kind of layer, each of which may do without (Cohere 2026)."""

from __future__ import annotations

from typing import Any

from ...configuration import MoebaConfig
from ...configuration.model_facts import rope_of
from ..config_rows import Computed, Fixed, Inert, Pair
from ..family import Family
from ..rows import same
from .shared.fields import ATTENTION_BIAS, SIZES, scaled_logits, without
from .shared.layer_kinds import LISTED_WINDOW
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, LAYER

IMAGE_AXES = (
    "mrope_section",
    "mrope_interleaved",
)  # the axes of a picture; a text has one position for all of them


def _rope(native: Any) -> dict[str, Any]:
    kinds, given = native["layer_types"], native["rope_parameters"] or {}
    if missing := sorted(set(kinds) - set(given)):
        raise ValueError(
            f"rope_parameters={given} has nothing for {missing} layers, not even None for no rope"
        )
    ropes = {
        kind: {name: value for name, value in given[kind].items() if name not in IMAGE_AXES}
        for kind in sorted(set(kinds))
        if given[kind] is not None
    }
    if not ropes:
        return {"position_embedding_type": "none", "rope_parameters": None}
    return {
        "rope_parameters": ropes if len(ropes) > 1 else next(iter(ropes.values())),
        "rotary_layers": [kind in ropes for kind in kinds],
    }


def _rope_back(config: MoebaConfig) -> dict[str, Any]:
    ropes, kinds = rope_of(config), list(config.layer_types)
    rotating = set()
    if config.position_embedding_type == "rope":
        rotating = {kind for kind, rotates in zip(kinds, config.rotary_layers, strict=True) if rotates}
    return {
        "rope_parameters": {kind: ropes.get(kind, ropes) if kind in rotating else None for kind in set(kinds)}
    }


FAMILY = Family(
    model_type="cohere_compass_text",
    architecture="CohereCompassForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim", "rope_parameters"),
        ATTENTION_BIAS,
        LISTED_WINDOW,
        Computed(("rope_parameters",), _rope, _rope_back),
        scaled_logits("logit_scale", "multiply", none_is_one=True),
        Pair("layer_norm_eps", "norm_eps"),
        Inert("pooling", "of the model that embeds whole texts"),
        Fixed("norm_type", "layernorm_float32"),
        Fixed("block_order", "parallel_stream_first"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *same(f"{LAYER}.input_layernorm.weight")),
)

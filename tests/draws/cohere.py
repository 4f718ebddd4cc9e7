"""Command R and Command R7B."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, layer_types, llama_like, maybe, rope


@draws("cohere", "cohere2")
def cohere(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=False, eps_name="layer_norm_eps")
    if fields["hidden_size"] < 12:  # a layer norm over so few channels multiplies rounding
        fields |= {name: 4 * fields[name] for name in ("hidden_size", "num_attention_heads")}
    fields |= {"attention_bias": chance(rng), "logit_scale": rng.choice([0.0625, 0.25, 1.0, 3.0])}
    if model_type == "cohere":
        return fields | {"use_qk_norm": chance(rng)}
    fields |= {"sliding_window": rng.choice([2, 3, 9])}
    return fields | maybe(rng, 0.6, layer_types=layer_types(rng, fields["num_hidden_layers"]))


@draws("cohere_compass_text")
def compass(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = cohere(rng, "cohere")
    del fields["use_qk_norm"]
    kinds = layer_types(rng, fields["num_hidden_layers"])
    head_dim = fields["hidden_size"] // fields["num_attention_heads"]
    ropes: dict[str, Any] = {kind: rope(rng, head_dim, by_kind=True) for kind in sorted(set(kinds))}
    if chance(rng):  # images have several axes of positions
        for settings in ropes.values():
            settings["mrope_section"] = [head_dim // 2, 0, 0]
    if chance(rng):
        ropes[rng.choice(sorted(ropes))] = None
    return fields | {
        "layer_types": kinds,
        "rope_parameters": ropes,
        "sliding_window": rng.choice([2, 3, 9]),
        "logit_scale": rng.choice([None, 0.25, 3.0]),
    }

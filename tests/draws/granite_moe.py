"""GraniteMoE, with a shared expert, and with sliding windows."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, experts, layer_types, llama_like, router_loss


@draws("granitemoe", "granitemoeshared", "granitemoe_swa")
def granite_moe(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=chance(rng)) | experts(rng, "num_local_experts") | router_loss(rng)
    fields |= dict(
        attention_bias=chance(rng),
        embedding_multiplier=rng.choice([1.0, 12]),
        logits_scaling=rng.choice([1.0, 6.0]),
        residual_multiplier=rng.choice([1.0, 0.22]),
        attention_multiplier=rng.choice([1.0, 0.0156]),
    )
    if model_type != "granitemoe":
        fields["shared_intermediate_size"] = rng.choice([0, 8, 19])
    return fields | _sliding(rng, fields) if model_type == "granitemoe_swa" else fields


def _sliding(rng: random.Random, fields: dict[str, Any]) -> dict[str, Any]:
    """Thetas are alike in layers of one kind, but for layers that do not rotate."""
    layers = fields["num_hidden_layers"]
    kinds = layer_types(rng, layers)
    theta = {"full_attention": rng.choice([10000.0, 700.0]), "sliding_attention": rng.choice([10000.0, 80.0])}
    by_layer = [rng.choice([theta[kind], theta[kind], 0]) for kind in kinds]
    return {
        "sliding_window": rng.choice([2, 3, 9]),
        "layer_types": rng.choice([None, kinds]),
        "layer_rope_theta": None,
    } | ({"layer_types": kinds, "layer_rope_theta": by_layer} if chance(rng, 0.7) else {})

"""AFMoE."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, experts, layer_types, llama_like


@draws("afmoe")
def afmoe(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | experts(rng)
    layers = fields["num_hidden_layers"]
    return fields | dict(
        attention_bias=chance(rng),
        layer_types=rng.choice([None, layer_types(rng, layers)]),
        global_attn_every_n_layers=rng.choice([1, 2, 4]),
        sliding_window=rng.choice([2, 3, 9]),
        moe_intermediate_size=rng.choice([16, 21]),
        num_dense_layers=rng.choice([0, 1, 1, layers]),
        num_shared_experts=rng.choice([1, 2]),
        route_scale=rng.choice([1.0, 2.826, 0.7]),
        mup_enabled=chance(rng),
    )

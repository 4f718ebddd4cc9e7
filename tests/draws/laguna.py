"""Laguna."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import WINDOWED, chance, experts, layer_types, llama_like, rope, router_loss


@draws("laguna")
def laguna(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | experts(rng) | router_loss(rng)
    layers, kv_heads, head_dim = (
        fields[name] for name in ("num_hidden_layers", "num_key_value_heads", "head_dim")
    )
    kinds = [rng.choice(["dense", "sparse", "sparse"]) for _ in range(layers)]
    counts = [kv_heads * rng.choice([1, 2, 3]) for _ in range(layers)]
    return fields | dict(
        attention_bias=chance(rng),
        gating=rng.choice([True, False, "per-head", "per-element"]),
        layer_types=rng.choice([None, layer_types(rng, layers)]),
        mlp_layer_types=rng.choice([None, kinds]),
        moe_intermediate_size=rng.choice([16, 21]),
        moe_router_logit_softcapping=rng.choice([0.0, 0.5, 2.0]),
        moe_routed_scaling_factor=rng.choice([1.0, 2.5, 0.7]),
        num_attention_heads_per_layer=rng.choice([None, counts, counts]),
        rope_parameters={kind: rope(rng, head_dim, partial=[0.5, 1.0], by_kind=True) for kind in WINDOWED},
        shared_expert_intermediate_size=rng.choice([8, 19]),
        sliding_window=rng.choice([2, 3, 9]),
    )

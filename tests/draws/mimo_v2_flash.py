"""MiMo-V2-Flash."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import WINDOWED, chance, grouped_experts, layer_types, llama_like, rope


def _rope(rng: random.Random, head_dim: int) -> dict[str, Any]:
    """With a factor of its own, or the family's default, which plain rope alone has."""
    found = rope(rng, head_dim, partial=[0.334, 0.5, 1.0], by_kind=True)
    if found["rope_type"] == "default" and found["partial_rotary_factor"] == 0.334 and chance(rng):
        del found["partial_rotary_factor"]
    return found


@draws("mimo_v2_flash")
def mimo_v2_flash(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | grouped_experts(rng, "n_routed_experts")
    layers, head_dim = fields["num_hidden_layers"], rng.choice([8, 12])
    kv_heads = rng.choice([1, 2])
    kinds = [rng.choice(["dense", "sparse", "sparse"]) for _ in range(layers)]
    return fields | dict(
        head_dim=head_dim,
        num_attention_heads=kv_heads * rng.choice([2, 4]),
        num_key_value_heads=kv_heads,
        v_head_dim=rng.choice([4, 7, head_dim]),
        attention_bias=chance(rng),
        attention_value_scale=rng.choice([None, 1.0, 0.707]),
        layer_types=rng.choice([None, layer_types(rng, layers), layer_types(rng, layers)]),
        mlp_layer_types=rng.choice([None, kinds]),
        moe_intermediate_size=rng.choice([16, 21]),
        norm_topk_prob=chance(rng),
        rope_parameters={kind: _rope(rng, head_dim) for kind in WINDOWED},
        routed_scaling_factor=rng.choice([None, 1.0, 2.5]),
        sliding_window=rng.choice([2, 3, 9]),
    )

"""Hunyuan 3."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, experts, llama_like


@draws("hy_v3")
def hy_v3(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | experts(rng)
    kinds = [rng.choice(["dense", "sparse", "sparse"]) for _ in range(fields["num_hidden_layers"])]
    return fields | dict(
        attention_bias=chance(rng),
        mlp_bias=chance(rng),
        mlp_layer_types=rng.choice([None, kinds]),
        moe_intermediate_size=rng.choice([16, 21]),
        num_shared_experts=rng.choice([1, 2]),
        router_scaling_factor=rng.choice([1.0, 2.826, 0.7]),
        enable_moe_fp32_combine=chance(rng),
    )

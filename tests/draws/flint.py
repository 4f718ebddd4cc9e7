"""Flint."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, experts, layer_types, llama_like, router_loss


@draws("flint")
def flint(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | experts(rng) | router_loss(rng)
    layers = fields["num_hidden_layers"]
    return fields | dict(
        attention_bias=chance(rng),
        layer_types=rng.choice([None, layer_types(rng, layers)]),
        sliding_window=rng.choice([2, 3, 9]),
        moe_intermediate_size=rng.choice([16, 21]),
        shared_expert_intermediate_size=rng.choice([8, 19]),
        norm_topk_prob=chance(rng),
        decoder_sparse_step=rng.choice([1, 1, 2]),
        mlp_only_layers=rng.choice([None, [], [], [0], [layers - 1]]),
    )

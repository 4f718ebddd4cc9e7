"""Phi-3.5-MoE."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, llama_like, router_loss


@draws("phimoe")
def phimoe(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=chance(rng), kinds=("default", "longrope")) | router_loss(rng)
    if fields["rope_parameters"]["rope_type"] == "longrope":
        scale = rng.choice([1.0, 1.243])
        fields["rope_parameters"] |= {"short_mscale": scale, "long_mscale": scale}
    return fields | dict(
        num_local_experts=rng.choice([2, 12, 13, 16]),
        router_jitter_noise=rng.choice([0.0, 0.01, 0.3]),
        input_jitter_noise=rng.choice([0.0, 0.01]),
        sliding_window=rng.choice([None, 2, 5]),
        attention_bias=chance(rng),
        lm_head_bias=chance(rng),
    )

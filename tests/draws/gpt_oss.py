"""GPT-OSS."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, experts, layer_types, llama_like, maybe, router_loss


@draws("gpt_oss")
def gpt_oss(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | experts(rng, "num_local_experts") | router_loss(rng)
    fields |= maybe(rng, layer_types=layer_types(rng, fields["num_hidden_layers"]))
    return fields | dict(
        attention_bias=chance(rng),
        sliding_window=rng.choice([2, 3, 9]),
        swiglu_alpha=rng.choice([1.702, 0.5]),
        swiglu_limit=rng.choice([7.0, 0.4]),
    )

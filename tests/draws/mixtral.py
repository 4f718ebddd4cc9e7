"""Mixtral."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import experts, llama_like, router_loss


@draws("mixtral")
def mixtral(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | experts(rng, "num_local_experts") | router_loss(rng)
    return fields | {
        "sliding_window": rng.choice([None, 2, 5]),
        "router_jitter_noise": rng.choice([0.0, 0.1]),
    }

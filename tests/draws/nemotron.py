"""Nemotron."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, llama_like


@draws("nemotron")
def nemotron(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, eps_name="norm_eps", partial=(0.5, 0.5, 1.0))
    return fields | {
        "hidden_act": rng.choice(["relu2", "relu2", "silu", "gelu"]),
        "attention_bias": chance(rng),
        "mlp_bias": chance(rng),
    }

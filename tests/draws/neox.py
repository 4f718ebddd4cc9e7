"""GPT-NeoX and Persimmon: one key/value head a query head."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, llama_like, not_narrow


def without_groups(rng: random.Random, partial: tuple[float, ...]) -> dict[str, Any]:
    """Llama's fields without grouped queries."""
    fields = llama_like(rng, free_width=False, partial=partial, eps_name="layer_norm_eps")
    fields.pop("num_key_value_heads")
    return not_narrow(fields) | {"hidden_act": rng.choice(["gelu", "relu2", "gelu_fast", "silu"])}


@draws("gpt_neox")
def gpt_neox(rng: random.Random, model_type: str) -> dict[str, Any]:
    return without_groups(rng, partial=(0.5, 1.0)) | {
        "attention_bias": chance(rng),
        "use_parallel_residual": chance(rng),
        "hidden_dropout": rng.choice([0.0, 0.1]),
    }


@draws("persimmon")
def persimmon(rng: random.Random, model_type: str) -> dict[str, Any]:
    return without_groups(rng, partial=(0.5, 1.0)) | {"qk_layernorm": chance(rng)}

"""Hunyuan-A13B."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, experts, llama_like


@draws("hunyuan_v1_moe")
def hunyuan_v1_moe(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | experts(rng) | {"attention_bias": chance(rng)}
    if fields["rope_parameters"]["rope_type"] == "dynamic" and chance(rng, 0.7):
        fields["rope_parameters"]["alpha"] = rng.choice([3.0, 1000.0])
    count = fields.pop("num_experts_per_tok")
    listed = [rng.choice([count, fields["num_experts"], 1]) for _ in range(fields["num_hidden_layers"])]
    return fields | {"moe_topk": rng.choice([count, [count] * fields["num_hidden_layers"], listed])}

"""OLMoE and FlexOlmo."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, experts, llama_like, router_loss


@draws("olmoe", "flex_olmo")
def olmoe(rng: random.Random, model_type: str) -> dict[str, Any]:
    free_width = model_type == "flex_olmo" and chance(rng)
    fields = llama_like(rng, free_width) | experts(rng) | router_loss(rng)
    fields |= {"attention_bias": chance(rng), "norm_topk_prob": chance(rng)}
    return fields | {"clip_qkv": rng.choice([None, 0.3, 2.0])} if model_type == "olmoe" else fields

"""StableLM."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, llama_like


@draws("stablelm")
def stablelm(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=False, partial=(0.5, 1.0), eps_name="layer_norm_eps")
    if chance(rng, 0.2):  # heads 10 and 11 sort before head 2
        fields |= {"num_attention_heads": 12, "num_key_value_heads": 12, "hidden_size": 48}
        fields["rope_parameters"] = {"rope_type": "default", "partial_rotary_factor": 0.5}
    return fields | {
        "use_qkv_bias": chance(rng),
        "qk_layernorm": chance(rng),
        "use_parallel_residual": chance(rng),
    }

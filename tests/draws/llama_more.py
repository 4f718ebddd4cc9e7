"""Llama itself under other configs, and Granite with norms behind its branches."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, llama_like
from .llama_sisters import granite_scales


@draws("internlm3", "iquestcoder")
def llama_itself(rng: random.Random, model_type: str) -> dict[str, Any]:
    bias = chance(rng)
    # The config of InternLM3 refuses biases in the attention alone, or in the feed-forward alone.
    mlp_bias = bias if model_type == "internlm3" else chance(rng)
    return llama_like(rng) | {"attention_bias": bias, "mlp_bias": mlp_bias}


@draws("hyperclovax")
def hyperclovax(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=chance(rng)) | granite_scales(rng) | {"use_post_norm": chance(rng)}
    if fields["use_post_norm"]:
        fields["residual_multiplier"] = 1.0
    return fields

"""OLMo, OLMo 2 and OLMo 3."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, layer_types, llama_like, maybe, rope


@draws("olmo", "olmo2", "olmo3")
def olmo(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=False) | {"attention_bias": chance(rng)}
    head_dim = fields["hidden_size"] // fields["num_attention_heads"]
    if model_type == "olmo":
        del fields["rms_norm_eps"]
        fields |= {"clip_qkv": rng.choice([None, 0.5, 8.0])}
    elif model_type == "olmo3":
        kinds = ("full_attention", "sliding_attention")
        del fields["rope_parameters"]
        fields |= maybe(rng, 0.8, rope_parameters={kind: rope(rng, head_dim, by_kind=True) for kind in kinds})
        fields |= {"sliding_window": rng.choice([2, 3, 9])}
        fields |= maybe(rng, layer_types=layer_types(rng, fields["num_hidden_layers"]))
    return fields

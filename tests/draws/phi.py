"""Phi and Phi-3."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, llama_like, not_narrow


def widened(rng: random.Random, fields: dict[str, Any]) -> dict[str, Any]:
    """Now and then a stream a little wider than its heads: their width is the quotient rounded down."""
    more = rng.choice([0, 0, fields["num_attention_heads"] - 1])
    return {"hidden_size": min(fields["hidden_size"] + more, 64)}


@draws("phi")
def phi(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=False, partial=(0.5, 1.0), eps_name="layer_norm_eps")
    fields |= widened(rng, fields)
    return fields | {"qk_layernorm": chance(rng)}


@draws("phi3")
def phi3(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=False, kinds=("default", "longrope"), partial=(0.5, 1.0))
    fields = not_narrow(fields)
    fields |= widened(rng, fields)
    fields["rope_parameters"].pop("original_max_position_embeddings", None)
    return fields | {
        "original_max_position_embeddings": rng.choice([16, 23]),
        "sliding_window": rng.choice([None, 2, 5]),
    }

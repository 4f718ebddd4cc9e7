"""Llama."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, llama_like


@draws("llama", "exaone")
def llama(rng: random.Random, model_type: str) -> dict[str, Any]:
    return llama_like(rng) | {"attention_bias": chance(rng), "mlp_bias": chance(rng)}

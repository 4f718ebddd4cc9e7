"""StarCoder2."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, llama_like


@draws("starcoder2")
def starcoder2(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=False, eps_name="norm_epsilon")
    return fields | {"use_bias": chance(rng), "sliding_window": rng.choice([None, 2, 5])}

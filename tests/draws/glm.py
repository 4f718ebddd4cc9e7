"""GLM and GLM-4."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, llama_like, not_narrow


@draws("glm", "glm4")
def glm(rng: random.Random, model_type: str) -> dict[str, Any]:
    return not_narrow(llama_like(rng, partial=(0.5, 1.0))) | {
        "attention_bias": chance(rng),
        "eos_token_id": rng.choice([None, 3, [3, 5]]),
    }

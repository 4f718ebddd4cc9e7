"""Dense models of latent attention."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance
from .deepseek import latent_model


@draws("youtu")
def youtu(rng: random.Random, model_type: str) -> dict[str, Any]:
    return latent_model(rng, pad_token_id=None) | {"rope_interleave": chance(rng)}


@draws("minicpm3")
def minicpm3(rng: random.Random, model_type: str) -> dict[str, Any]:
    return latent_model(rng) | {
        "mlp_bias": chance(rng),
        "scale_emb": rng.choice([1, 12, 0.5]),
        "scale_depth": rng.choice([None, 1.4, 0.3]),
        "dim_model_base": rng.choice([None, 8, 7, 256]),
    }

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

"""MiniCPM3: latent attention in a dense model, with multipliers on embeddings, branches and logits (OpenBMB 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Pair, pairs
from ..family import Family
from .shared.fields import SLICED, logit_scale
from .shared.latent_attention import LATENT_SIZES, head_parts, latent_attention
from .shared.tensors import EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS


def _scalar_that_gives(value: float, near: float, read: Callable[[float], float]) -> float:
    """The shortest of the floats at `near` that is read as just this value; `near` itself where none is."""
    neighbours = (near, math.nextafter(near, -math.inf), math.nextafter(near, math.inf))
    candidates = (*(round(near, digits) for digits in range(1, 16)), *neighbours)
    return next((candidate for candidate in candidates if read(candidate) == value), near)


def _scales(native: Any) -> dict[str, Any]:
    return {
        "residual_multiplier": native["scale_depth"] / math.sqrt(native["num_hidden_layers"]),
        **logit_scale(native["hidden_size"] / native["dim_model_base"], "divide"),
    }


def _scales_back(config: MoebaConfig) -> dict[str, Any]:
    root = math.sqrt(config.num_hidden_layers)
    return {
        "scale_depth": _scalar_that_gives(
            config.residual_multiplier, config.residual_multiplier * root, lambda depth: depth / root
        ),
        "dim_model_base": max(round(config.hidden_size / config.logit_scale), 1),
    }


FAMILY = Family(
    model_type="minicpm3",
    architecture="MiniCPM3ForCausalLM",
    kind="dense",
    config_rows=(
        *LATENT_SIZES,
        head_parts(),
        *pairs("mlp_bias"),
        Pair("scale_emb", "embedding_multiplier"),
        Computed(("scale_depth", "dim_model_base"), _scales, _scales_back),
        Fixed("round_embedding_multiplier", True),
        SLICED,
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *latent_attention(), *GATED_MLP, *PRE_NORMS),
    rounds_otherwise=True,
    reordered="stock divides what enters the head, where Moeba divides the logits",
)

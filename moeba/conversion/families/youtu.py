"""Youtu: DeepSeek-V3's latent attention in a dense model (Tencent 2025)."""

from __future__ import annotations

from typing import Any

from ..config_rows import Computed, Inert
from ..family import Family
from .shared.latent_attention import LATENT_SIZES, ROPE_INTERLEAVE, head_parts, latent_attention
from .shared.tensors import EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS


def _no_padding(native: Any) -> dict[str, Any]:
    if native["pad_token_id"] is not None:
        raise ValueError(
            f"pad_token_id={native['pad_token_id']} is supported at None only: the stock model clears that token's "
            "embedding whenever it is loaded"
        )
    return {}


FAMILY = Family(
    model_type="youtu",
    architecture="YoutuForCausalLM",
    kind="dense",
    config_rows=(
        *LATENT_SIZES,
        head_parts(),
        ROPE_INTERLEAVE,
        Computed((), _no_padding, lambda config: {}),
        Inert("embedding_initializer_range", "the spread of new embeddings, which training starts from"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *latent_attention(), *GATED_MLP, *PRE_NORMS),
)

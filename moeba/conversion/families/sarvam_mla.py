"""Sarvam-105B: the DeepSeek-V3 model under a config of its own (Sarvam AI 2026)."""

from ..config_rows import Stated
from ..family import Family
from .shared.experts import (
    BALANCED_BLOCK,
    LATENT_EXPERTS,
    PREDICTION_COUNT,
    PREDICTION_LAYERS,
    ROUTED_AS,
    SARVAM_ROUTER,
    sparse_layers,
)
from .shared.latent_attention import latent_attention
from .shared.tensors import EMBEDDINGS_AND_HEAD

FAMILY = Family(
    model_type="sarvam_mla",
    architecture="DeepseekV3ForCausalLM",
    kind="moe",
    since="5.24",
    config_rows=(
        *LATENT_EXPERTS,
        sparse_layers("first_k_dense_replace"),
        PREDICTION_COUNT,
        *ROUTED_AS,
        *SARVAM_ROUTER,
        Stated("use_qk_norm", True, "the inner norms of latent attention, by the authors' name"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *latent_attention(), *BALANCED_BLOCK),
    dropped=(PREDICTION_LAYERS,),
)

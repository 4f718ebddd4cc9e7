"""DeepSeek-V3: latent attention, experts in groups, balanced by a bias that only chooses (DeepSeek-AI 2024)."""

from ..family import Family
from .shared.experts import (
    BALANCED_BLOCK,
    LATENT_EXPERTS,
    PREDICTION_COUNT,
    PREDICTION_LAYERS,
    ROUTED_AS,
    sparse_layers,
)
from .shared.latent_attention import latent_attention
from .shared.tensors import EMBEDDINGS_AND_HEAD

FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    kind="moe",
    config_rows=(
        *LATENT_EXPERTS,
        sparse_layers("first_k_dense_replace"),
        PREDICTION_COUNT,
        *ROUTED_AS,
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *latent_attention(), *BALANCED_BLOCK),
    dropped=(PREDICTION_LAYERS,),
)

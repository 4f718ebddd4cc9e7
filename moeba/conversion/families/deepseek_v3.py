"""DeepSeek-V3: latent attention, experts in groups, balanced by a bias that only chooses (DeepSeek-AI 2024)."""

from ..family import Family
from .deepseek import (
    BALANCED_BLOCK,
    GROUPED_EXPERTS,
    LATENT_SIZES,
    PREDICTION_COUNT,
    PREDICTION_LAYERS,
    ROPE_INTERLEAVE,
    ROUTED_AS,
    SLICED,
    head_parts,
    latent_attention,
    sparse_layers,
)
from .shared_tensors import EMBEDDINGS_AND_HEAD

FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    kind="moe",
    config_rows=(
        *LATENT_SIZES,
        *GROUPED_EXPERTS,
        head_parts(),
        ROPE_INTERLEAVE,
        sparse_layers("first_k_dense_replace"),
        PREDICTION_COUNT,
        SLICED,
        *ROUTED_AS,
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *latent_attention(), *BALANCED_BLOCK),
    dropped=(PREDICTION_LAYERS,),
)

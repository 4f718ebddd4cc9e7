"""GLM-4.7-Flash: DeepSeek-V3 with dense and sparse layers in any order (GLM team 2026)."""

from ..family import Family
from .shared.experts import (
    BALANCED_BLOCK,
    LATENT_EXPERTS,
    LEADING_DENSE,
    NO_FURTHER_LAYERS,
    PREDICTION_LAYERS,
    ROUTED_AS,
    sparse_layers,
)
from .shared.latent_attention import latent_attention
from .shared.tensors import EMBEDDINGS_AND_HEAD

FAMILY = Family(
    model_type="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    kind="moe",
    config_rows=(
        *LATENT_EXPERTS,
        *ROUTED_AS,
        sparse_layers("mlp_layer_types"),
        LEADING_DENSE,
        NO_FURTHER_LAYERS,
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *latent_attention(), *BALANCED_BLOCK),
    dropped=(PREDICTION_LAYERS,),
)

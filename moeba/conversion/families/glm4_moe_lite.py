"""GLM-4.7-Flash: DeepSeek-V3 with dense and sparse layers in any order (GLM team 2026)."""

from ..family import Family
from .deepseek import LEADING_DENSE, NO_FURTHER_LAYERS, PREDICTION_LAYERS, sparse_layers
from .deepseek_v3 import FAMILY as DEEPSEEK_V3
from .shared_fields import without

FAMILY = Family(
    model_type="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    kind="moe",
    config_rows=(
        *without(DEEPSEEK_V3.config_rows, "first_k_dense_replace", "num_mtp_layers"),
        sparse_layers("mlp_layer_types"),
        LEADING_DENSE,
        NO_FURTHER_LAYERS,
    ),
    rows=DEEPSEEK_V3.rows,
    dropped=(PREDICTION_LAYERS,),
)

"""GLM-4.5: partly rotated heads, and DeepSeek-V3's experts (GLM team 2025)."""

from ..family import Family
from .shared.experts import BALANCED_BLOCK, PREDICTION_LAYERS
from .shared.fields import UNLISTED_HEAD_DIM
from .shared.llama_blocks import GLM_MOE_FIELDS
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, QK_NORM

FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    kind="moe",
    config_rows=(*GLM_MOE_FIELDS, UNLISTED_HEAD_DIM),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *BALANCED_BLOCK),
    dropped=(PREDICTION_LAYERS,),
)

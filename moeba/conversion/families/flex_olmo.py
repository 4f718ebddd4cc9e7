"""FlexOlmo: OLMoE's experts in OLMo 2's block, which normalises what its branches return (Shi et al. 2025)."""

from ..family import Family
from .shared.experts import OLMOE_EXPERTS
from .shared.fields import without
from .shared.llama_blocks import OLMO2_FIELDS
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, OUTPUT_NORMS, QK_NORM, ROUTER_AND_EXPERTS

FAMILY = Family(
    model_type="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    kind="moe",
    config_rows=(*without(OLMO2_FIELDS, "intermediate_size"), *OLMOE_EXPERTS),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *OUTPUT_NORMS, *ROUTER_AND_EXPERTS),
)

"""FlexOlmo: OLMoE's experts in OLMo 2's block, which normalises what its branches return (Shi et al. 2025)."""

from ..family import Family
from .olmo2 import CONFIG_ROWS
from .olmoe import EXPERTS_AND_ATTENTION, EXPERTS_CONFIG
from .shared_fields import without
from .shared_tensors import OUTPUT_NORMS

FAMILY = Family(
    model_type="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    kind="moe",
    config_rows=(*without(CONFIG_ROWS, "intermediate_size"), *EXPERTS_CONFIG),
    rows=(*EXPERTS_AND_ATTENTION, *OUTPUT_NORMS),
)

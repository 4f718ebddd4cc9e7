"""FlexOlmo: OLMoE's experts in OLMo 2's block, which normalises what its branches return (Shi et al. 2025)."""

from ..family import Family
from .common import OUTPUT_NORMS, without
from .olmo2 import CONFIG_ROWS
from .olmoe import EXPERTS_AND_ATTENTION, EXPERTS_CONFIG

FAMILY = Family(
    model_type="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    kind="moe",
    config_rows=(*without(CONFIG_ROWS, "intermediate_size"), *EXPERTS_CONFIG),
    rows=(*EXPERTS_AND_ATTENTION, *OUTPUT_NORMS),
)

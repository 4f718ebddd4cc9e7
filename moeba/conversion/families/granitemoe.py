"""GraniteMoE: Granite with experts; the best logits share the weight (IBM 2024)."""

from ..family import Family
from .shared.granite_blocks import GRANITE_MOE_FIELDS, GRANITE_MOE_TENSORS

FAMILY = Family(
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    kind="moe",
    config_rows=GRANITE_MOE_FIELDS,
    rows=GRANITE_MOE_TENSORS,
)

"""GraniteMoEShared: GraniteMoE with an expert that every token visits (IBM 2025)."""

from ..family import Family
from .shared.granite_blocks import GRANITE_MOE_FIELDS, GRANITE_MOE_TENSORS, SHARED_MLP, SHARED_MLP_WIDTH
from .shared.tensors import FUSED_ACTIVATION

FAMILY = Family(
    model_type="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    kind="moe",
    config_rows=(*GRANITE_MOE_FIELDS, SHARED_MLP_WIDTH),
    rows=(*GRANITE_MOE_TENSORS, *SHARED_MLP),
    reordered=FUSED_ACTIVATION,
)

"""GLM-4 of 2024: Llama's block with half of each head rotated, in neighbouring pairs (GLM team 2024)."""

from ..family import Family
from .shared.llama_blocks import GLM_FIELDS, GLM_REORDERED
from .shared.tensors import EMBEDDINGS_AND_HEAD, FUSED_GATED_MLP, INTERLEAVED_ATTENTION, PRE_NORMS

FAMILY = Family(
    model_type="glm",
    architecture="GlmForCausalLM",
    kind="dense",
    config_rows=GLM_FIELDS,
    rows=(*EMBEDDINGS_AND_HEAD, *INTERLEAVED_ATTENTION, *FUSED_GATED_MLP, *PRE_NORMS),
    reordered=GLM_REORDERED,
)

"""GLM-4 of 2024: Llama's block with half of each head rotated, in neighbouring pairs (GLM team 2024)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from .shared_fields import PARTIAL_ROPE, SIZES, rotated_share, without
from .shared_tensors import EMBEDDINGS_AND_HEAD, FUSED_GATED_MLP, INTERLEAVED_ATTENTION, PRE_NORMS

FAMILY = Family(
    model_type="glm",
    architecture="GlmForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "rope_parameters"),
        PARTIAL_ROPE,
        rotated_share(),
        *pairs("attention_bias"),
        Pair("rms_norm_eps", "norm_eps"),
        Fixed("attention_output_bias", False),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *INTERLEAVED_ATTENTION, *FUSED_GATED_MLP, *PRE_NORMS),
    reordered="stock rotates neighbouring entries, whose products with the keys are added in another order",
)

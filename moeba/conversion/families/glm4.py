"""GLM-4-0414: GLM's block with a norm after each branch as well."""

from ..config_rows import Fixed
from ..family import Family
from ..rows import renamed, same
from .shared.llama_blocks import GLM_FIELDS, GLM_REORDERED
from .shared.tensors import EMBEDDINGS_AND_HEAD, FUSED_GATED_MLP, INTERLEAVED_ATTENTION, LAYER

FAMILY = Family(
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    kind="dense",
    config_rows=(*GLM_FIELDS, Fixed("block_order", "sandwich_norm")),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *INTERLEAVED_ATTENTION,
        *FUSED_GATED_MLP,
        *same(f"{LAYER}.input_layernorm.weight"),
        renamed(f"{LAYER}.post_self_attn_layernorm.weight", f"{LAYER}.post_attention_layernorm.weight"),
        renamed(f"{LAYER}.post_attention_layernorm.weight", f"{LAYER}.pre_feedforward_layernorm.weight"),
        renamed(f"{LAYER}.post_mlp_layernorm.weight", f"{LAYER}.post_feedforward_layernorm.weight"),
    ),
    reordered=GLM_REORDERED,
)

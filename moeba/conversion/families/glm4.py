"""GLM-4-0414: GLM's block with a norm after each branch as well."""

from dataclasses import replace

from ..config_rows import Fixed
from ..rows import renamed, same
from .glm import FAMILY as GLM
from .shared_tensors import EMBEDDINGS_AND_HEAD, FUSED_GATED_MLP, INTERLEAVED_ATTENTION, LAYER

FAMILY = replace(
    GLM,
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    config_rows=(*GLM.config_rows, Fixed("block_order", "sandwich_norm")),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *INTERLEAVED_ATTENTION,
        *FUSED_GATED_MLP,
        *same(f"{LAYER}.input_layernorm.weight"),
        renamed(f"{LAYER}.post_self_attn_layernorm.weight", f"{LAYER}.post_attention_layernorm.weight"),
        renamed(f"{LAYER}.post_attention_layernorm.weight", f"{LAYER}.pre_feedforward_layernorm.weight"),
        renamed(f"{LAYER}.post_mlp_layernorm.weight", f"{LAYER}.post_feedforward_layernorm.weight"),
    ),
)

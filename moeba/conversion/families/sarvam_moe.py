"""Sarvam-30B: the GLM-4.5 model under names of its own, its heads rotated whole (Sarvam AI 2026)."""

from dataclasses import replace

from ..config_rows import Stated, pairs
from ..rows import Row, Split, renamed, same
from .deepseek import BLOCK
from .glm4_moe import FAMILY as GLM4_MOE
from .shared_fields import without
from .shared_tensors import ATTENTION_BLOCK, LAYER, QKV, ROUTED_EXPERTS, qkv_sizes

# How the authors' code calls what the family always does.
SCORES = (
    Stated("score_function", "sigmoid", "the authors' code scores experts by it"),
    Stated(
        "moe_router_enable_expert_bias", True, "the authors' code adds the bias of the choice where it is set"
    ),
    Stated("router_dtype", "fp32", "the authors' code scores in it"),
)

FAMILY = replace(
    GLM4_MOE,
    model_type="sarvam_moe",
    since="5.24",
    config_rows=(
        *without(GLM4_MOE.config_rows, "head_dim"),
        *pairs("head_dim"),
        *SCORES,
        Stated("use_bias", False, "biases of the products, in the authors' code"),
    ),
    rows=(
        renamed("model.word_embeddings.weight", "model.embed_tokens.weight"),
        *same("model.norm.weight", "lm_head.weight"),
        # Stored in one, computed one by one.
        *(
            Row(
                (f"{LAYER}.attention.query_key_value.{part}",),
                tuple(f"{ATTENTION_BLOCK}.{name}.{part}" for name in QKV),
                (Split(qkv_sizes),),
            )
            for part in ("weight", "bias")
        ),
        renamed(f"{LAYER}.attention.dense.weight", f"{ATTENTION_BLOCK}.o_proj.weight"),
        renamed(f"{LAYER}.attention.query_layernorm.weight", f"{ATTENTION_BLOCK}.q_norm.weight"),
        renamed(f"{LAYER}.attention.key_layernorm.weight", f"{ATTENTION_BLOCK}.k_norm.weight"),
        *BLOCK,
        *ROUTED_EXPERTS,
        renamed(f"{LAYER}.mlp.gate.expert_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
    ),
)

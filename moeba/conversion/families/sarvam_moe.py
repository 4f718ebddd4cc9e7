"""Sarvam-30B: the GLM-4.5 model under names of its own, its heads rotated whole (Sarvam AI 2026)."""

from ..config_rows import Stated, pairs
from ..family import Family
from ..rows import Split, renamed, same
from .shared.experts import PREDICTION_LAYERS, SARVAM_ROUTER, SHARING_BLOCK
from .shared.llama_blocks import GLM_MOE_FIELDS
from .shared.tensors import ATTENTION_BLOCK, LAYER, fused_qkv, qkv_sizes

FAMILY = Family(
    model_type="sarvam_moe",
    architecture="Glm4MoeForCausalLM",
    kind="moe",
    since="5.24",
    config_rows=(
        *GLM_MOE_FIELDS,
        *pairs("head_dim"),
        *SARVAM_ROUTER,
        Stated("use_bias", False, "biases of the products, in the authors' code"),
    ),
    rows=(
        renamed("model.word_embeddings.weight", "model.embed_tokens.weight"),
        *same("model.norm.weight", "lm_head.weight"),
        # Stored in one, computed one by one.
        *fused_qkv(f"{LAYER}.attention.query_key_value", Split(qkv_sizes)),
        renamed(f"{LAYER}.attention.dense.weight", f"{ATTENTION_BLOCK}.o_proj.weight"),
        renamed(f"{LAYER}.attention.query_layernorm.weight", f"{ATTENTION_BLOCK}.q_norm.weight"),
        renamed(f"{LAYER}.attention.key_layernorm.weight", f"{ATTENTION_BLOCK}.k_norm.weight"),
        *SHARING_BLOCK,
        renamed(f"{LAYER}.mlp.gate.expert_bias", f"{LAYER}.mlp.gate.e_score_correction_bias"),
    ),
    dropped=(PREDICTION_LAYERS,),
)

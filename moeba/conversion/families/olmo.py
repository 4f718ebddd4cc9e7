"""OLMo: Llama's block with norms that have no parameters, and clamped projections (Groeneveld et al. 2024)."""

from ..config_rows import Fixed, pairs
from ..family import Family
from ..rows import same
from .shared.fields import ATTENTION_BIAS, SIZES_HEAD_DIM_UNLISTED
from .shared.tensors import ATTENTION, GATED_MLP

FAMILY = Family(
    model_type="olmo",
    architecture="OlmoForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES_HEAD_DIM_UNLISTED,
        ATTENTION_BIAS,
        *pairs("clip_qkv"),
        Fixed("norm_type", "layernorm_nonparametric"),
        Fixed("norm_eps", 1e-5),
        Fixed("rotary_precision", "float32"),
    ),
    rows=(
        *same("model.embed_tokens.weight", "lm_head.weight"),
        *ATTENTION,
        *GATED_MLP,
    ),
)

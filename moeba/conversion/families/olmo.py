"""OLMo: Llama's block with norms that have no parameters, and clamped projections (Groeneveld et al. 2024)."""

from __future__ import annotations

from ..config_rows import Fixed, pairs
from ..family import Family
from .shared_fields import ATTENTION_BIAS, SIZES, UNLISTED_HEAD_DIM, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP

FAMILY = Family(
    model_type="olmo",
    architecture="OlmoForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim"),
        UNLISTED_HEAD_DIM,
        ATTENTION_BIAS,
        *pairs("clip_qkv"),
        Fixed("norm_type", "layernorm_nonparametric"),
        Fixed("norm_eps", 1e-5),
        Fixed("rotary_precision", "float32"),
    ),
    rows=(
        *(row for row in EMBEDDINGS_AND_HEAD if "model.norm.weight" not in row.ours),
        *ATTENTION,
        *GATED_MLP,
    ),
)

"""Qwen2: Llama's block with biases on queries, keys and values (Yang et al. 2024)."""

from ..config_rows import Fixed, Pair
from ..family import Family
from .shared_fields import SIZES, UNLISTED_HEAD_DIM, WINDOW_BY_LAYER, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim"),
        UNLISTED_HEAD_DIM,
        Pair("rms_norm_eps", "norm_eps"),
        WINDOW_BY_LAYER,
        Fixed("attention_bias", True),
        Fixed("attention_output_bias", False),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS),
)

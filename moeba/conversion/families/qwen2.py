"""Qwen2: Llama's block with biases on queries, keys and values (Yang et al. 2024)."""

from ..config_rows import Fixed, Pair
from ..family import Family
from .shared.fields import SIZES_HEAD_DIM_UNLISTED
from .shared.layer_kinds import WINDOW_BY_LAYER
from .shared.tensors import LLAMA_TENSORS

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES_HEAD_DIM_UNLISTED,
        Pair("rms_norm_eps", "norm_eps"),
        WINDOW_BY_LAYER,
        Fixed("attention_bias", True),
        Fixed("attention_output_bias", False),
    ),
    rows=LLAMA_TENSORS,
)

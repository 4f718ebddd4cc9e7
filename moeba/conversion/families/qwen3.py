"""Qwen3: Llama's block with a norm on each query and key head (Yang et al. 2025)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from .shared.fields import SIZES
from .shared.layer_kinds import WINDOW_BY_LAYER
from .shared.tensors import LLAMA_TENSORS, QK_NORM

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES,
        *pairs("attention_bias"),
        Pair("rms_norm_eps", "norm_eps"),
        WINDOW_BY_LAYER,
        Fixed("qk_norm", "head"),
    ),
    rows=(*LLAMA_TENSORS, *QK_NORM),
)

"""ERNIE 4.5: Llama with neighbouring entries rotated together, in float32 (Baidu 2025)."""

from ..config_rows import Fixed, Pair
from ..family import Family
from .shared.fields import SIZES, every_bias, without
from .shared.tensors import INTERLEAVED, INTERLEAVED_LLAMA_TENSORS

FAMILY = Family(
    model_type="ernie4_5",
    architecture="Ernie4_5ForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "attention_dropout"),
        Pair("rms_norm_eps", "norm_eps"),
        every_bias("use_bias"),
        Fixed("rotary_precision", "float32"),
    ),
    rows=INTERLEAVED_LLAMA_TENSORS,
    reordered=INTERLEAVED,
)

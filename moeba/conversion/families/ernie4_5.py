"""ERNIE 4.5: Llama with neighbouring entries rotated together, in float32 (Baidu 2025)."""

from ..config_rows import Computed, Fixed, Pair
from ..family import Family
from .shared_fields import SIZES, without
from .shared_tensors import EMBEDDINGS_AND_HEAD, GATED_MLP, INTERLEAVED_ATTENTION, PRE_NORMS

FAMILY = Family(
    model_type="ernie4_5",
    architecture="Ernie4_5ForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "attention_dropout"),
        Pair("rms_norm_eps", "norm_eps"),
        Computed(
            ("use_bias",),
            lambda native: dict.fromkeys(
                ("attention_bias", "attention_output_bias", "mlp_bias"), bool(native["use_bias"])
            ),
            lambda config: {"use_bias": config.attention_bias},
        ),
        Fixed("rotary_precision", "float32"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *INTERLEAVED_ATTENTION, *GATED_MLP, *PRE_NORMS),
    reordered="rotated entries lie in another order, in which queries and keys are summed",
)

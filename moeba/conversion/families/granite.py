"""Granite: Llama with four multipliers, on embeddings, attention, residual branches and logits (IBM 2024)."""

from ..config_rows import Computed, ConfigRow, Pair, pairs
from ..family import Family
from .shared_fields import ATTENTION_BIAS, SIZES, UNLISTED_HEAD_DIM, scaled_logits, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, PRE_NORMS

BIASES_AND_SCALES: tuple[ConfigRow, ...] = (
    ATTENTION_BIAS,
    *pairs("mlp_bias", "embedding_multiplier", "residual_multiplier"),
    scaled_logits("logits_scaling", "divide"),
    Computed(
        ("attention_multiplier",),
        lambda native: {"attention_multiplier": native["attention_multiplier"]},
        lambda config: {
            "attention_multiplier": config.head_dim**-0.5
            if config.attention_multiplier is None
            else config.attention_multiplier
        },
    ),
)

FAMILY = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "head_dim"),
        UNLISTED_HEAD_DIM,
        Pair("rms_norm_eps", "norm_eps"),
        *BIASES_AND_SCALES,
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *PRE_NORMS),
)

"""Jais 2: layer norms, an ungated feed-forward of squared ReLUs, biases everywhere (Inception 2025)."""

from ..config_rows import Fixed, Pair, pairs
from ..family import Family
from .shared.fields import ATTENTION_BIAS, SIZES, without
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_LAYER_NORMS, PLAIN_MLP

FAMILY = Family(
    model_type="jais2",
    architecture="Jais2ForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "attention_dropout"),
        Pair("attention_dropout", "attention_dropout", ours_from=lambda dropout: dropout or 0.0),
        *pairs("mlp_bias"),
        Pair("layer_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        Fixed("norm_type", "layernorm"),
        Fixed("feed_forward_type", "mlp"),
    ),
    rows=(*EMBEDDINGS_AND_LAYER_NORMS, *ATTENTION, *PLAIN_MLP),
)

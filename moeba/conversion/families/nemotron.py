"""Nemotron: layer norms stored around 1, part of a head rotated, no gate (Parmar et al. 2024)."""

from ..config_rows import Fixed, pairs
from ..family import Family
from .shared.fields import ATTENTION_BIAS, SIZES, without
from .shared.rope import PARTIAL_ROPE, rotated_share
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_LAYER_NORMS, PLAIN_MLP

FAMILY = Family(
    model_type="nemotron",
    architecture="NemotronForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "rope_parameters"),
        PARTIAL_ROPE,
        rotated_share(),
        ATTENTION_BIAS,
        *pairs("mlp_bias", "norm_eps"),
        Fixed("norm_type", "layernorm_unit_offset"),
        Fixed("feed_forward_type", "mlp"),
    ),
    rows=(*EMBEDDINGS_AND_LAYER_NORMS, *ATTENTION, *PLAIN_MLP),
)

"""Nemotron: layer norms stored around 1, part of a head rotated, no gate (Parmar et al. 2024)."""

from __future__ import annotations

from ..config_rows import Fixed, pairs
from ..family import Family
from ..rows import linear
from .shared_fields import ATTENTION_BIAS, PARTIAL_ROPE, SIZES, rotated_share, without
from .shared_tensors import ATTENTION, EMBEDDINGS_AND_HEAD, PLAIN_MLP, PRE_LAYER_NORMS

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
    rows=(
        *(row for row in EMBEDDINGS_AND_HEAD if "model.norm.weight" not in row.ours),
        *linear("model.norm", "model.norm"),
        *ATTENTION,
        *PLAIN_MLP,
        *PRE_LAYER_NORMS,
    ),
)

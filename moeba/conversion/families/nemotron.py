"""Nemotron: layer norms stored around 1, part of a head rotated, no gate (Parmar et al. 2024)."""

from __future__ import annotations

from ..config_rows import Fixed, pairs
from ..family import Family
from ..rows import linear
from .common import ATTENTION, ATTENTION_BIAS, EMBEDDINGS_AND_HEAD, LAYER, PARTIAL_ROPE, SIZES, without

FAMILY = Family(
    model_type="nemotron",
    architecture="NemotronForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES, "rope_parameters"),
        PARTIAL_ROPE,
        ATTENTION_BIAS,
        *pairs("mlp_bias", "norm_eps"),
        Fixed("norm_type", "layernorm_unit_offset"),
        Fixed("feed_forward_type", "mlp"),
    ),
    rows=(
        *(row for row in EMBEDDINGS_AND_HEAD if "model.norm.weight" not in row.ours),
        *linear("model.norm", "model.norm"),
        *ATTENTION,
        *(row for part in ("up_proj", "down_proj")
          for row in linear(f"{LAYER}.mlp.{part}", f"{LAYER}.mlp.{part}")),
        *(row for norm in ("input_layernorm", "post_attention_layernorm")
          for row in linear(f"{LAYER}.{norm}", f"{LAYER}.{norm}")),
    ),
)  # fmt: skip

"""A.X-K1: DeepSeek-V3 with a norm behind the experts (SK Telecom 2026)."""

from dataclasses import replace

from ..config_rows import Fixed
from ..family import Family
from ..rows import Dropped, renamed
from .shared.experts import (
    EVERY_LAYER,
    LATENT_EXPERTS,
    LEADING_DENSE,
    ROUTED_AS,
    SELECTION_BIAS,
    SHARING_BLOCK,
    sparse_layers,
)
from .shared.fields import without
from .shared.latent_attention import latent_attention
from .shared.tensors import EMBEDDINGS_AND_HEAD, LAYER

OUTPUT_NORM = f"{LAYER}.post_mlp_layernorm.weight"

FAMILY = Family(
    model_type="axk1",
    architecture="AXK1ForCausalLM",
    kind="moe",
    config_rows=(
        *LATENT_EXPERTS,
        *without(ROUTED_AS, "moe_layer_freq"),
        sparse_layers("mlp_layer_types"),
        # What mlp_layer_types is made from where it is not given.
        replace(LEADING_DENSE, required=False),
        replace(EVERY_LAYER, required=False),
        Fixed("moe_output_norm", True),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *latent_attention(),
        *SHARING_BLOCK,
        # The released checkpoints route without a bias.
        *(replace(row, zero_if_absent=True) for row in SELECTION_BIAS),
        renamed(OUTPUT_NORM, f"{LAYER}.mlp.output_norm.weight"),
    ),
    dropped=(Dropped(OUTPUT_NORM, "the norm behind the experts, of a layer that has none"),),
)

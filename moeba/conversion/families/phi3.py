"""Phi-3: Llama's block with fused projections, and long rope with a factor for each frequency (Abdin et al. 2024)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Inert, Pair
from ..family import Family
from ..rows import Split, same
from .shared.fields import SIZES_HEAD_DIM_UNLISTED, without
from .shared.layer_kinds import UNIFORM_WINDOW
from .shared.rope import PARTIAL_ROPE, rotated_share, single_rope
from .shared.tensors import (
    EMBEDDINGS_AND_HEAD,
    FUSED_ACTIVATION,
    FUSED_GATED_MLP,
    LAYER,
    PRE_NORMS,
    fused_qkv,
    qkv_sizes,
)


def _rope_back(config: MoebaConfig) -> dict[str, Any]:
    # The field beside the rope settings wins over the one inside.
    original = (single_rope(config) or {}).get("original_max_position_embeddings")
    found = PARTIAL_ROPE.to_theirs(config)
    return found if original is None else {**found, "original_max_position_embeddings": original}


FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    kind="dense",
    config_rows=(
        *without(SIZES_HEAD_DIM_UNLISTED, "rope_parameters"),
        Computed(
            ("rope_parameters", "original_max_position_embeddings"),
            PARTIAL_ROPE.to_ours,
            _rope_back,
        ),
        rotated_share(),
        Pair("rms_norm_eps", "norm_eps"),
        Pair("resid_pdrop", "hidden_dropout"),
        Inert("embd_pdrop", "the stock model has no dropout after the embeddings"),
        UNIFORM_WINDOW,
        Fixed("longrope_restarts_cache", True),
    ),
    rows=(
        *EMBEDDINGS_AND_HEAD,
        *PRE_NORMS,
        *fused_qkv(f"{LAYER}.self_attn.qkv_proj", Split(qkv_sizes), parts=("weight",)),
        *same(f"{LAYER}.self_attn.o_proj.weight"),
        *FUSED_GATED_MLP,
    ),
    reordered=FUSED_ACTIVATION,
)

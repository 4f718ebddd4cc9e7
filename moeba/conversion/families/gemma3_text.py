"""Gemma 3, the language model: Gemma 2 with query and key norms and a rope of its own for sliding layers (2025)."""

from ..config_rows import Fixed, Inert
from ..family import Family
from .shared.fields import without
from .shared.gemma_blocks import CAUSAL, SANDWICH_NORMS, SINCE_GEMMA2
from .shared.rope import rope_by_kind
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, QK_NORM

FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    kind="dense",
    config_rows=(
        *without(SINCE_GEMMA2, "rope_parameters"),
        rope_by_kind(),
        CAUSAL,
        Inert("attn_logit_softcapping", "the stock attention never uses it"),
        Inert("rope_local_base_freq", "old spelling of the sliding layers' rope_parameters"),
        Inert("sliding_window_pattern", "old spelling of layer_types"),
        Fixed("block_order", "sandwich_norm"),
        Fixed("qk_norm", "head"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *GATED_MLP, *SANDWICH_NORMS),
)

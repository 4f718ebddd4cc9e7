"""Gemma 2: Gemma with norms on both sides of each branch, softcaps and sliding windows (Gemma Team 2024)."""

from ..config_rows import Fixed, pairs
from ..family import Family
from .shared.gemma_blocks import CAUSAL, SANDWICH_NORMS, SINCE_GEMMA2
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP

FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    kind="dense",
    config_rows=(
        *SINCE_GEMMA2,
        *pairs("attn_logit_softcapping"),
        CAUSAL,
        Fixed("block_order", "sandwich_norm"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *SANDWICH_NORMS),
)

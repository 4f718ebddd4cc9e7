"""Arcee: Llama with an ungated feed-forward of squared ReLUs (Arcee AI 2025)."""

from ..config_rows import Fixed
from ..family import Family
from .shared.llama_blocks import LLAMA_FIELDS
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, PLAIN_MLP, PRE_NORMS

FAMILY = Family(
    model_type="arcee",
    architecture="ArceeForCausalLM",
    kind="dense",
    config_rows=(*LLAMA_FIELDS, Fixed("feed_forward_type", "mlp")),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *PLAIN_MLP, *PRE_NORMS),
)

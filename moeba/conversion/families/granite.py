"""Granite: Llama with four multipliers, on embeddings, attention, residual branches and logits (IBM 2024)."""

from ..family import Family
from .shared.granite_blocks import GRANITE_FIELDS
from .shared.tensors import LLAMA_TENSORS

FAMILY = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    kind="dense",
    config_rows=GRANITE_FIELDS,
    rows=LLAMA_TENSORS,
)

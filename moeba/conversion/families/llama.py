"""Llama: pre-norm, rotary positions, gated feed-forward (Touvron et al. 2023)."""

from ..family import Family
from .shared.fields import SLICED
from .shared.llama_blocks import LLAMA_FIELDS
from .shared.tensors import LLAMA_TENSORS

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    kind="dense",
    config_rows=(*LLAMA_FIELDS, SLICED),
    rows=LLAMA_TENSORS,
)

"""Apertus: a norm on each query and key head, an ungated feed-forward whose activation learns (Swiss AI 2025)."""

from ..family import Family
from .shared.llama_blocks import APERTUS_FIELDS, APERTUS_TENSORS

FAMILY = Family(
    model_type="apertus",
    architecture="ApertusForCausalLM",
    kind="dense",
    config_rows=APERTUS_FIELDS,
    rows=APERTUS_TENSORS,
)

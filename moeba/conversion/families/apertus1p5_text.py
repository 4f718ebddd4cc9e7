"""Apertus 1.5, its text model: Apertus with pieces of images and sound in its vocabulary (Swiss AI 2026)."""

from ..config_rows import Only
from ..family import Family
from .shared.llama_blocks import APERTUS_FIELDS, APERTUS_TENSORS

FAMILY = Family(
    model_type="apertus1p5_text",
    architecture="Apertus1p5TextForCausalLM",
    kind="dense",
    since="5.24",
    config_rows=(
        *APERTUS_FIELDS,
        Only("output_vocab_size", None, "a head shorter than the vocabulary is not built yet"),
    ),
    rows=APERTUS_TENSORS,
)

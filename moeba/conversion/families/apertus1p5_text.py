"""Apertus 1.5, its text model: Apertus with pieces of images and sound in its vocabulary (Swiss AI 2026)."""

from dataclasses import replace

from ..config_rows import Only
from .apertus import FAMILY as APERTUS

FAMILY = replace(
    APERTUS,
    model_type="apertus1p5_text",
    architecture="Apertus1p5TextForCausalLM",
    since="5.24",
    config_rows=(
        *APERTUS.config_rows,
        Only("output_vocab_size", None, "a head shorter than the vocabulary is not built yet"),
    ),
)

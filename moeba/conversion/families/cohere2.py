"""Command R7B: Command R with sliding windows; layers that see everything do not rotate (Cohere 2024)."""

from ..config_rows import Inert, Stated
from ..family import Family
from .shared.layer_kinds import LISTED_WINDOW, ROTATED_WHERE_SLIDING
from .shared.llama_blocks import COHERE_FIELDS, COHERE_REORDERED, COHERE_TENSORS

FAMILY = Family(
    model_type="cohere2",
    architecture="Cohere2ForCausalLM",
    kind="dense",
    config_rows=(
        *COHERE_FIELDS,
        LISTED_WINDOW,
        ROTATED_WHERE_SLIDING,
        Inert("sliding_window_pattern", "old spelling of layer_types"),
        Stated("rotary_pct", 1.0, "llama.cpp's converter takes the rotated width from it"),
    ),
    rows=COHERE_TENSORS,
    reordered=COHERE_REORDERED,
)

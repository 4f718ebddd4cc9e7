"""Command R7B: Command R with sliding windows; layers that see everything do not rotate (Cohere 2024)."""

from __future__ import annotations

from typing import Any

from ..config_rows import Computed, Inert, Stated
from ..family import Family
from .cohere import CONFIG_ROWS, REORDERED, ROWS
from .shared_fields import LISTED_WINDOW


def _rotation_of_sliding_layers(native: Any) -> dict[str, Any]:
    return {"rotary_layers": [kind == "sliding_attention" for kind in native["layer_types"]]}


FAMILY = Family(
    model_type="cohere2",
    architecture="Cohere2ForCausalLM",
    kind="dense",
    config_rows=(
        *CONFIG_ROWS,
        LISTED_WINDOW,
        Computed((), _rotation_of_sliding_layers, lambda config: {}),
        Inert("sliding_window_pattern", "old spelling of layer_types"),
        Stated("rotary_pct", 1.0, "llama.cpp's converter takes the rotated width from it"),
    ),
    rows=ROWS,
    reordered=REORDERED,
)

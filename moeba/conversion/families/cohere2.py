"""Command R7B: Command R with sliding windows; layers that see everything do not rotate (Cohere 2024)."""

from __future__ import annotations

from typing import Any

from ..config_rows import Computed, Inert
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
    ),
    rows=ROWS,
    leftovers=(
        "layer_switch",
        "order_of_interleaved_layers",
        "position_embedding_type",
        "rotary_pct",
        "use_embedding_sharing",
        "use_gated_activation",
        "use_parallel_block",
        "use_parallel_embedding",
        "use_qk_norm",
    ),
    reordered=REORDERED,
)

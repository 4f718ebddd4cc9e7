"""EXAONE 4: norms behind branches and on query and key heads; beside a window only sliding layers rotate (LG 2025)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Fixed, Inert, Pair
from ..family import Family
from .shared.fields import SIZES_HEAD_DIM_UNLISTED
from .shared.tensors import ATTENTION, EMBEDDINGS_AND_HEAD, GATED_MLP, OUTPUT_NORMS, QK_NORM


def _window(native: Any) -> dict[str, Any]:
    kinds = list(native["layer_types"])
    slides = [kind == "sliding_attention" for kind in kinds]
    window = native["sliding_window"]
    return {
        "layer_types": kinds,
        "sliding_window": window if any(slides) else None,
        "rotary_layers": [True] * len(kinds) if window is None else slides,
    }


def _window_back(config: MoebaConfig) -> dict[str, Any]:
    # A window that no layer uses still turns the rotation off.
    unused = None if all(config.rotary_layers) else 4096
    sliding = "sliding_attention" in config.layer_types
    return {
        "layer_types": list(config.layer_types),
        "sliding_window": config.sliding_window if sliding else unused,
    }


FAMILY = Family(
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES_HEAD_DIM_UNLISTED,
        Pair("rms_norm_eps", "norm_eps"),
        Computed(("sliding_window", "layer_types"), _window, _window_back),
        Inert("sliding_window_pattern", "what layer_types is made from where it is not given"),
        Fixed("block_order", "output_norm"),
        Fixed("qk_norm", "head"),
    ),
    rows=(*EMBEDDINGS_AND_HEAD, *ATTENTION, *QK_NORM, *GATED_MLP, *OUTPUT_NORMS),
)

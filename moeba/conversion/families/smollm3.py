"""SmolLM3: Llama of which every fourth layer does not rotate (Hugging Face 2025)."""

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, Inert, Pair, pairs
from ..family import Family
from .shared.fields import ATTENTION_BIAS, SIZES_HEAD_DIM_UNLISTED
from .shared.layer_kinds import LISTED_WINDOW
from .shared.tensors import LLAMA_TENSORS


def _window(native: Any) -> dict[str, Any]:
    sliding = "sliding_attention" in native["layer_types"]
    if sliding and not native["use_sliding_window"]:
        raise ValueError(
            "use_sliding_window=False while layer_types has 'sliding_attention': the stock model slides or not, "
            "depending on its attention implementation"
        )
    return LISTED_WINDOW.to_ours(native)


def _window_back(config: MoebaConfig) -> dict[str, Any]:
    return {
        "layer_types": list(config.layer_types),
        "sliding_window": config.sliding_window,
        "use_sliding_window": "sliding_attention" in config.layer_types,
    }


FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    kind="dense",
    config_rows=(
        *SIZES_HEAD_DIM_UNLISTED,
        *pairs("mlp_bias"),
        Pair("rms_norm_eps", "norm_eps"),
        ATTENTION_BIAS,
        Computed(("use_sliding_window", "sliding_window", "layer_types"), _window, _window_back),
        Computed(
            ("no_rope_layers",),
            # One entry a layer, or more; 1 for a layer that does rotate.
            lambda native: {
                "rotary_layers": [bool(rotates) for rotates in native["no_rope_layers"]][
                    : native["num_hidden_layers"]
                ]
            },
            lambda config: {"no_rope_layers": [int(rotates) for rotates in config.rotary_layers]},
        ),
        Inert("no_rope_layer_interval", "what no_rope_layers is made from where it is not given"),
    ),
    rows=LLAMA_TENSORS,
)

"""What differs from layer to layer: windows, rotation, and which layers have experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....configuration import MoebaConfig
from ...config_rows import Computed


def _uniform_window(native: Any) -> dict[str, Any]:
    window = native["sliding_window"]
    kind = "full_attention" if window is None else "sliding_attention"
    return {"sliding_window": window, "layer_types": [kind] * native["num_hidden_layers"]}


UNIFORM_WINDOW = Computed(
    ("sliding_window",), _uniform_window, lambda config: {"sliding_window": config.sliding_window}
)


def _listed_window(native: Any) -> dict[str, Any]:
    sliding = "sliding_attention" in native["layer_types"]
    return {
        "layer_types": native["layer_types"],
        "sliding_window": native["sliding_window"] if sliding else None,
    }


# The kind of each layer in a list. Stock models make a mask for sliding layers even where there are none, and
# fail without a window.
LISTED_WINDOW = Computed(
    ("layer_types", "sliding_window"),
    _listed_window,
    lambda config: {
        "layer_types": list(config.layer_types),
        "sliding_window": config.sliding_window or 4096,
    },
)


def _window_by_layer(native: Any) -> dict[str, Any]:
    if "sliding_attention" in native["layer_types"] and native["sliding_window"] is None:
        raise ValueError(
            "layer_types has 'sliding_attention' but sliding_window is off (use_sliding_window=False)"
        )
    return _listed_window(native)


def _window_by_layer_back(config: MoebaConfig) -> dict[str, Any]:
    kinds = list(config.layer_types)
    sliding = "sliding_attention" in kinds
    return {
        "use_sliding_window": sliding,
        "sliding_window": config.sliding_window,
        "max_window_layers": kinds.index("sliding_attention") if sliding else len(kinds),
        "layer_types": kinds,
    }


# Qwen: a switch, a size, the first sliding layer, and the list that overrides it.
WINDOW_BY_LAYER = Computed(
    ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
    _window_by_layer,
    _window_by_layer_back,
)

# Full layers see the text without positions.
ROTATED_WHERE_SLIDING = Computed(
    (),
    lambda native: {"rotary_layers": [kind == "sliding_attention" for kind in native["layer_types"]]},
    lambda config: {},
)


def listed_kinds(experts: str) -> Computed:
    """Dense and sparse layers in a list, and the number of `experts`, which is none where no layer is sparse."""
    return Computed(
        ("mlp_layer_types", experts),
        lambda native: {
            "mlp_layer_types": list(native["mlp_layer_types"]),
            "num_experts": native[experts] if "sparse" in native["mlp_layer_types"] else 0,
        },
        lambda config: {"mlp_layer_types": list(config.mlp_layer_types), experts: config.num_experts},
    )


def _by_step(native: Any) -> dict[str, Any]:
    dense, step = set(native["mlp_only_layers"]), native["decoder_sparse_step"]
    layers, experts = range(native["num_hidden_layers"]), native["num_experts"]
    kinds = ["sparse" if experts and i not in dense and (i + 1) % step == 0 else "dense" for i in layers]
    # Experts that no layer has would contradict `mlp_layer_types`.
    return {"mlp_layer_types": kinds, "num_experts": experts if "sparse" in kinds else 0}


def _by_step_back(config: MoebaConfig) -> dict[str, Any]:
    dense = [i for i, kind in enumerate(config.mlp_layer_types) if kind == "dense"]
    return {"mlp_only_layers": dense, "decoder_sparse_step": 1, "num_experts": config.num_experts}


# Qwen: the dense layers, and each how many-th of the others is sparse.
SPARSE_BY_STEP = Computed(("mlp_only_layers", "decoder_sparse_step", "num_experts"), _by_step, _by_step_back)


def each_layer(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Our fields for one in which layers may differ."""
    uneven = {i: {name: value} for i, value in enumerate(values) if value != values[0]}
    return {name: values[0]} | ({"per_layer_config": uneven} if uneven else {})

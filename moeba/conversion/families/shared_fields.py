"""Config rows that many families share: sizes, biases, rope, windows, kinds of layers, widths of shared experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...configuration import MoebaConfig
from ...configuration.model_facts import rope_of
from ...configuration.position_fields import plain_rope
from ...library.native_models import holds_in_float32
from ..config_rows import Computed, ConfigRow, Fixed, Pair, Stated, pairs


def without(rows: tuple[ConfigRow, ...], *names: str) -> tuple[ConfigRow, ...]:
    """The rows, but for those of these native fields."""
    return tuple(row for row in rows if not set(row.theirs) & set(names))


def scalar_that_gives(value: float, near: float, read: Callable[[float], float]) -> float:
    """The shortest of the floats at `near` that is read as just this value; `near` itself where none is."""
    neighbours = (near, math.nextafter(near, -math.inf), math.nextafter(near, math.inf))
    candidates = (*(round(near, digits) for digits in range(1, 16)), *neighbours)
    return next((candidate for candidate in candidates if read(candidate) == value), near)


def _each_kind(rope: Any) -> list[dict[str, Any]]:
    """The rope settings of each kind of layers, where they are given by kind."""
    found = [settings for settings in (rope or {}).values() if isinstance(settings, dict)]
    for settings in [rope, *found] if found else ():
        if settings.get("truncate", True) is not True:
            raise ValueError(
                f"truncate={settings['truncate']} is not supported in rope settings by kind of layers: the stock code "
                "reads it beside the kinds only, for all of them"
            )
    return found


def one_rope(rope: Any) -> Any:
    """Rope settings of a family whose stock code reads one rope for all layers, and takes others for none."""
    if kinds := [name for name, settings in (rope or {}).items() if isinstance(settings, dict)]:
        raise ValueError(
            f"rope_parameters={rope} has settings for {', '.join(kinds)}: the stock model has one rope"
        )
    return rope


def single_rope(config: MoebaConfig) -> Any:
    """The one rope of a model, None without; settings for each kind of layers that say the same are one."""
    rope = plain_rope(config) if config.rope_is_per_layer_type else rope_of(config)
    if any(isinstance(settings, dict) for settings in (rope or {}).values()):
        raise ValueError(f"rope_parameters={rope!r} (there: one rope for all layers)")
    return rope or None


def whole_heads(rope: Any) -> Any:
    """Rope settings of a family that rotates whole heads: the stock code ignores a factor, or fails on it."""
    for settings in _each_kind(rope) or [rope or {}]:
        factor = settings.get("partial_rotary_factor", 1.0)
        if factor != 1.0:
            raise ValueError(
                f"partial_rotary_factor={factor} is supported at 1.0 only: the stock model rotates whole heads"
            )
    return rope


ONE_ROPE = Computed(
    ("rope_parameters",),
    lambda native: {"rope_parameters": whole_heads(one_rope(native["rope_parameters"]))},
    lambda config: {"rope_parameters": single_rope(config)},
)

SIZES: tuple[ConfigRow, ...] = pairs(
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "attention_dropout",
) + (ONE_ROPE,)

# One switch for the biases of all four projections.
ATTENTION_BIAS = Computed(
    ("attention_bias",),
    lambda native: dict.fromkeys(("attention_bias", "attention_output_bias"), native["attention_bias"]),
    lambda config: {"attention_bias": config.attention_bias},
)

# The balance loss of transformers' own models: there with the router logits, in evaluation too.
ROUTER_LOSS: tuple[ConfigRow, ...] = (
    Pair("output_router_logits", "output_router_logits", ours_from=bool),
    Pair("router_aux_loss_coef", "router_aux_loss_coef", ours_from=lambda factor: factor or 0.0),
    Fixed("router_loss", "with_router_logits"),
)
# The stock model shows its router logits and makes no loss of them.
NO_ROUTER_LOSS: tuple[ConfigRow, ...] = (*pairs("output_router_logits"), Fixed("router_loss", "none"))


def scaled_logits(name: str, operation: str, none_is_one: bool = False) -> Computed:
    """The number by which a family multiplies or divides its logits.

    Args:
        none_is_one: the native field is None where logits stay as they are.
    """

    def to_theirs(config: MoebaConfig) -> dict[str, Any]:
        return {name: None if none_is_one and config.logit_scale == 1.0 else config.logit_scale}

    def to_ours(native: Any) -> dict[str, Any]:
        value = native[name]
        return logit_scale(1.0 if value is None and none_is_one else value, operation)

    return Computed((name,), to_ours, to_theirs)


def logit_scale(value: float, operation: str) -> dict[str, Any]:
    """Our fields for it: the operation by a number of 1 is none."""
    return {"logit_scale": value, "logit_scale_operation": operation if value != 1.0 else "multiply"}


# GPT's block: layer norms, a feed-forward without a gate, a bias in every projection.
CLASSIC: tuple[ConfigRow, ...] = (
    Fixed("norm_type", "layernorm"),
    Fixed("feed_forward_type", "mlp"),
    Fixed("attention_bias", True),
    Fixed("mlp_bias", True),
)

# The embedding of the padding token is like any other.
TRAINED_PADDING = Fixed("train_padding_embedding", True)


def _head_dim(native: Any) -> dict[str, Any]:
    return {"head_dim": native["head_dim"] or native["hidden_size"] // native["num_attention_heads"]}


def _head_dim_back(config: MoebaConfig) -> dict[str, Any]:
    usual = config.hidden_size // config.num_attention_heads
    return {} if config.head_dim == usual else {"head_dim": config.head_dim}


# No field of the stock config, but its code reads it where a config.json has it.
UNLISTED_HEAD_DIM = Computed(("head_dim",), _head_dim, _head_dim_back)


def _explicit_factor(rope: Any) -> Any:
    """Stock configs that rotate part of a head have a default factor of their own: say ours."""
    return rope and {"partial_rotary_factor": 1.0, **rope}


PARTIAL_ROPE = Computed(
    ("rope_parameters",),
    lambda native: {"rope_parameters": one_rope(native["rope_parameters"])},
    lambda config: {"rope_parameters": _explicit_factor(single_rope(config))},
)


def _rotated_share(config: MoebaConfig) -> float:
    share: float = (single_rope(config) or {}).get("partial_rotary_factor", 1.0)
    return share


def rotated_share(name: str = "partial_rotary_factor") -> Stated:
    """The rotated share of a head beside the rope settings, where llama.cpp's converter looks for it."""
    return Stated(
        name, _rotated_share, "llama.cpp's converter looks for it beside rope_parameters", required=False
    )


def rope_by_kind(partial_factor: float | None = None) -> Computed:
    """Rope settings for each kind of layer.

    Args:
        partial_factor: part of a head that plain rope turns where the settings do not say; None where whole heads turn.
    """

    def to_ours(native: Any) -> dict[str, Any]:
        found = {}
        _each_kind(native["rope_parameters"])
        for kind in sorted(set(native["layer_types"])):
            rope = (native["rope_parameters"] or {}).get(kind)
            if not isinstance(rope, dict):
                raise ValueError(
                    f"rope_parameters={native['rope_parameters']} has nothing for '{kind}' layers"
                )
            plain = rope.get("rope_type", "default") == "default"
            partly = plain and partial_factor is not None
            found[kind] = {"partial_rotary_factor": partial_factor, **rope} if partly else rope
        if partial_factor is None:
            whole_heads(found)
        return {"rope_parameters": found}

    def to_theirs(config: MoebaConfig) -> dict[str, Any]:
        ropes = rope_of(config)
        by_kind = {kind: ropes.get(kind, ropes) for kind in sorted(set(config.layer_types))}
        if partial_factor is None:
            return {"rope_parameters": by_kind}
        return {"rope_parameters": {kind: _explicit_factor(rope) for kind, rope in by_kind.items()}}

    return Computed(("rope_parameters",), to_ours, to_theirs)


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


def _shared_width(native: Any) -> dict[str, Any]:
    width = native["shared_expert_intermediate_size"]
    if not width:
        raise ValueError(f"shared_expert_intermediate_size={width}: a shared expert without neurons")
    return {"shared_expert_intermediate_size": width}


def _router_param_dtype(native: Any) -> dict[str, Any]:
    return {
        "router_param_dtype": "float32" if holds_in_float32(native["model_type"], "gate.weight") else "model"
    }


# Releases of transformers differ in which families hold the router's weight in float32: the stock class is asked.
ROUTER_PARAM_DTYPE = Computed((), _router_param_dtype, lambda config: {})

# One shared expert, in each sparse layer.
SHARED_WIDTH = Computed(
    ("shared_expert_intermediate_size",),
    _shared_width,
    lambda config: {"shared_expert_intermediate_size": config.shared_expert_intermediate_size},
)


def shared_experts_by_count(width: str, count: str) -> Computed:
    """The width of an expert, and the number of shared ones, which are computed as a single wide one."""
    return Computed(
        (width, count),
        lambda native: {
            "moe_intermediate_size": native[width],
            "shared_expert_intermediate_size": native[width] * native[count],
        },
        lambda config: {
            width: config.moe_intermediate_size,
            count: config.shared_expert_intermediate_size // config.moe_intermediate_size,
        },
    )

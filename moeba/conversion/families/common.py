"""Rows that many families share."""

from __future__ import annotations

from typing import Any

from ...configuration import MoebaConfig
from ..config_rows import Computed, ConfigRow, Pair, pairs
from ..rows import FuseGateUp, Row, StackExperts, linear, same


def _whole_heads(rope: Any) -> Any:
    """Rope settings of a family that rotates whole heads: the stock code ignores a factor, or fails on it."""
    factor = (rope or {}).get("partial_rotary_factor", 1.0)
    if factor != 1.0:
        raise ValueError(
            f"partial_rotary_factor={factor} is supported at 1.0 only: the stock model rotates whole heads"
        )
    return rope


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
) + (Pair("rope_parameters", "rope_parameters", ours_from=_whole_heads),)

LAYER = "model.layers.{layer}"

EMBEDDINGS_AND_HEAD: tuple[Row, ...] = same(
    "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
)

ATTENTION: tuple[Row, ...] = tuple(
    row
    for part in ("q_proj", "k_proj", "v_proj", "o_proj")
    for row in linear(f"{LAYER}.self_attn.{part}", f"{LAYER}.self_attn.{part}")
)

QK_NORM: tuple[Row, ...] = same(f"{LAYER}.self_attn.q_norm.weight", f"{LAYER}.self_attn.k_norm.weight")

PRE_NORMS: tuple[Row, ...] = same(
    f"{LAYER}.input_layernorm.weight", f"{LAYER}.post_attention_layernorm.weight"
)

GATED_MLP: tuple[Row, ...] = tuple(
    row
    for part in ("gate_proj", "up_proj", "down_proj")
    for row in linear(f"{LAYER}.mlp.{part}", f"{LAYER}.mlp.{part}")
)


def per_expert(block: str, gate: str, up: str, down: str) -> tuple[Row, Row]:
    """Experts stored one by one under `block.experts.N.*` on their side, fused on ours."""
    names = [f"{LAYER}.{block}.experts.{{expert}}.{part}.weight" for part in (gate, up, down)]
    ours = f"{LAYER}.mlp.experts"
    return (
        Row((names[0], names[1]), (f"{ours}.gate_up_proj",), (StackExperts(2), FuseGateUp())),
        Row((names[2],), (f"{ours}.down_proj",), (StackExperts(1),)),
    )


def _uniform_window(native: Any) -> dict[str, Any]:
    window = native["sliding_window"]
    kind = "full_attention" if window is None else "sliding_attention"
    return {"sliding_window": window, "layer_types": [kind] * native["num_hidden_layers"]}


UNIFORM_WINDOW = Computed(
    ("sliding_window",), _uniform_window, lambda config: {"sliding_window": config.sliding_window}
)


def _window_by_layer(native: Any) -> dict[str, Any]:
    sliding = "sliding_attention" in native["layer_types"]
    if sliding and native["sliding_window"] is None:
        raise ValueError(
            "layer_types has 'sliding_attention' but sliding_window is off (use_sliding_window=False)"
        )
    return {
        "layer_types": native["layer_types"],
        "sliding_window": native["sliding_window"] if sliding else None,
    }


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

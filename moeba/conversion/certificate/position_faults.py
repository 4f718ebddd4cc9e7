"""Planted faults in what a model knows of the order of its tokens: rope, slopes, waves and learned positions."""

from __future__ import annotations

import copy
from typing import Any

import torch

from ...configuration import MoebaConfig
from ...configuration.model_facts import rope_of
from ...modeling import MoebaForCausalLM
from ..rows import rotated_width
from .fault import Fault, layers_of, roll


def _rope(config: MoebaConfig) -> bool:
    return config.position_embedding_type == "rope" and any(config.rotary_layers)


def _attention(model: MoebaForCausalLM) -> Any:
    """The first attention that rotates, or the first."""
    layers = layers_of(model)
    rotary = [layer.self_attn for layer in layers if layer.self_attn.is_rotary]
    return rotary[0] if rotary else layers[0].self_attn


def _roll_rotated(model: MoebaForCausalLM) -> None:
    """Mistake half-split for interleaved rotation: reorder the rows of each query head."""
    attention = _attention(model)
    weight = (attention.q_proj if hasattr(attention, "q_proj") else attention.q_b_proj).weight
    heads = weight.view(-1, attention.head_dim, weight.shape[-1])
    turned = rotated_width(model.config)
    start = attention.head_dim - model.config.rotary_head_dim
    order = torch.arange(attention.head_dim)
    order[start : start + turned] = start + torch.arange(turned).view(2, turned // 2).T.reshape(-1)
    weight.copy_(heads[:, order].reshape(weight.shape))


def _scaled_theta(config: MoebaConfig) -> dict[str, Any]:
    rope = copy.deepcopy(rope_of(config))
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if "rope_theta" in parameters:
            parameters["rope_theta"] = parameters["rope_theta"] * 2
    return {"rope_parameters": rope}


def _plain(rope: dict[str, Any]) -> dict[str, Any]:
    # Queries that grow read the last of them whatever the type.
    names = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    return {**{name: rope[name] for name in names if name in rope}, "rope_type": "default"}


def _plain_rope(config: MoebaConfig) -> dict[str, Any]:
    rope = rope_of(config)
    if config.rope_is_per_layer_type:
        return {"rope_parameters": {kind: _plain(settings) for kind, settings in rope.items()}}
    return {"rope_parameters": _plain(rope)}


def _ropes_in_use(config: MoebaConfig) -> dict[str, dict[str, Any]]:
    """The rope settings of each kind of layer that rotates."""
    rope = rope_of(config)
    kinds = {kind for kind, rotates in zip(config.layer_types, config.rotary_layers, strict=True) if rotates}
    return {kind: rope[kind] if config.rope_is_per_layer_type else rope for kind in sorted(kinds)}


def _scales(rope: dict[str, Any]) -> bool:
    """Whether rope is anything but plain; a factor of 1 leaves it plain."""
    kind = rope.get("rope_type", "default")
    return kind != "default" and (rope.get("factor") != 1.0 or kind in ("dynamic", "longrope"))


def _scaled_rope(config: MoebaConfig) -> bool:
    return _rope(config) and any(map(_scales, _ropes_in_use(config).values()))


def _two_ropes(config: MoebaConfig) -> bool:
    """Whether two kinds of layers rotate, each in its way."""
    if not _rope(config) or not config.rope_is_per_layer_type or rotated_width(config) <= 2:
        return False
    ropes = [rope if _scales(rope) else _plain(rope) for rope in _ropes_in_use(config).values()]
    return len(ropes) == 2 and ropes[0] != ropes[1]


def _exchanged_ropes(config: MoebaConfig) -> dict[str, Any]:
    kinds = ("full_attention", "sliding_attention")
    rope = copy.deepcopy(rope_of(config))
    return {"rope_parameters": dict(zip(kinds, (rope[kind] for kind in reversed(kinds)), strict=True))}


def _ignores_long_factors(config: MoebaConfig) -> bool:
    rope = rope_of(config)
    return (
        _rope(config)
        and config.longrope_factors == "short"
        and rope.get("long_factor") != rope.get("short_factor")
    )


POSITION_FAULTS: tuple[Fault, ...] = (
    Fault("query rows interleaved", lambda c: _rope(c) and rotated_width(c) > 2, _roll_rotated),
    Fault("query norm on the other side of the rotation",
          lambda c: c.attention_type == "grouped_query" and c.qk_norm != "none" and _rope(c)
          and not c.qk_norm_type.endswith("nonparametric"),
          config=lambda c: {"qk_norm_after_rope": not c.qk_norm_after_rope}),
    Fault("rotated neighbours and halves exchanged",
          lambda c: c.attention_type == "latent" and _rope(c) and rotated_width(c) > 2,
          config=lambda c: {"rope_interleave": not c.rope_interleave}),
    Fault("rotation turned off in a layer", _rope, config=lambda c: {"rotary_layers": [False] * c.num_hidden_layers}),
    Fault("rotation turned on everywhere", lambda c: _rope(c) and not all(c.rotary_layers),
          config=lambda c: {"rotary_layers": [True] * c.num_hidden_layers}),
    Fault("growth of the queries dropped", lambda c: bool(c.query_growth_beta),
          config=lambda c: {"query_growth_beta": None}),
    Fault("slopes of distance doubled", lambda c: c.position_embedding_type == "alibi",
          config=lambda c: {"alibi_multiplier": 2 * c.alibi_multiplier}),
    Fault("distance biases rolled by one", lambda c: c.position_embedding_type == "relative",
          lambda m: roll(m.model.position_bias.relative_attention_bias.weight)),
    Fault("waves shifted by one position", lambda c: c.position_embedding_type.startswith("sinusoidal"),
          config=lambda c: {"position_offset": c.position_offset + 1}),
    # The first pair of channels turns by one radian a token whatever theta is.
    Fault("rope theta doubled", lambda c: _rope(c) and rotated_width(c) > 2, config=_scaled_theta),
    Fault("rope scaling dropped", _scaled_rope, config=_plain_rope),
    Fault("ropes of two kinds of layers exchanged", _two_ropes, config=_exchanged_ropes),
    Fault("long rope factors taken beyond the original context", _ignores_long_factors,
          config=lambda c: {"longrope_factors": "by_length"}),
    Fault("positions shifted by one", lambda c: c.position_embedding_type == "learned",
          lambda m: roll(m.model.embed_positions.weight)),
)  # fmt: skip

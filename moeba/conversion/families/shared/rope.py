"""Rotary positions: one rope for all layers, one for each kind of them, or one that turns part of a head."""

from __future__ import annotations

from typing import Any

from ....configuration import MoebaConfig
from ....configuration.model_facts import rope_of
from ....configuration.position_fields import plain_rope
from ...config_rows import Computed, Stated


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


def one_whole_rope(native: Any) -> Any:
    """The rope settings of a config, which are one rope that rotates whole heads."""
    return whole_heads(one_rope(native["rope_parameters"]))


ONE_ROPE = Computed(
    ("rope_parameters",),
    lambda native: {"rope_parameters": one_whole_rope(native)},
    lambda config: {"rope_parameters": single_rope(config)},
)


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


BETA, ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"


def _growing_rope(native: Any) -> dict[str, Any]:
    rope = dict(one_whole_rope(native))
    beta = rope.pop(BETA, None)
    if beta is None or ORIGINAL not in rope:
        raise ValueError(
            f"rope_parameters={native['rope_parameters']} lacks {BETA} or {ORIGINAL}: the stock model needs both"
        )
    rope.pop("max_position_embeddings", None)  # a copy of the config's own, which nothing reads
    if not beta and rope["rope_type"] in ("default", "linear", "dynamic"):
        del rope[ORIGINAL]  # only the growth reads it
    return {"rope_parameters": rope, "query_growth_beta": beta or None}


def _growing_rope_back(config: MoebaConfig) -> dict[str, Any]:
    # A growth of 0 multiplies by exactly 1, but the stock model still asks where it would begin.
    grown = {ORIGINAL: config.max_position_embeddings, BETA: config.query_growth_beta or 0.0}
    return {"rope_parameters": {**grown, **(single_rope(config) or {})}}


# Queries grow with their position, as the settings say.
GROWING_ROPE = Computed(("rope_parameters",), _growing_rope, _growing_rope_back)

"""What a model knows of the order of its tokens: rotations, tables, slopes, distances."""

import copy
from collections.abc import Iterator
from typing import Any, Literal

from .fields import Filled, Needs, Settings, WrongValue, must, part, says
from .model_facts import longrope_switch, rope_of, rotated_width
from .ranges import COUNT, MOST, NOT_ZERO, POSITIVE, between
from .rope_rules import rope_problems

TABLES = ("learned", "sinusoidal", "sinusoidal_fairseq")
SMALL_CONTEXT = 64

ROTATES = Needs(lambda c: any(c.rotary_layers or ()), "layers that rotate (rotary_layers)")
_ROPE = must(Needs(lambda c: c.position_embedding_type == "rope", "position_embedding_type='rope'"))
_TABLE = must(Needs(lambda c: c.position_embedding_type in TABLES, f"position_embedding_type in {TABLES}"))
_NEIGHBOURS = must(
    Needs(
        lambda c: c.attention_type == "latent",
        "attention_type='latent' (for another, reorder the rows of q_proj and k_proj)",
    )
)
_SLOPES = Needs(lambda c: c.position_embedding_type == "alibi", "position_embedding_type='alibi'")
_DISTANCES = Needs(lambda c: c.position_embedding_type == "relative", "position_embedding_type='relative'")
_LONGROPE = Needs(lambda c: longrope_switch(c) is not None, "rope_parameters of rope_type 'longrope'")


def plain_rope(config: Any) -> dict[str, Any] | None:
    """Rope settings without what says nothing: kinds that no layer has, equal settings twice, a factor of 1."""
    rope = rope_of(config)
    if rope and config.rope_is_per_layer_type:
        kinds = [_without_full_factor(rope[kind]) for kind in sorted(set(config.layer_types))]
        same = all(settings == kinds[0] for settings in kinds)
        return kinds[0] if same and kinds else dict(zip(sorted(set(config.layer_types)), kinds, strict=True))
    return _without_full_factor(rope) or None


def _without_full_factor(rope: dict[str, Any] | None) -> dict[str, Any] | None:
    if not rope or rope.get("partial_rotary_factor") != 1.0:
        return rope
    return {key: value for key, value in rope.items() if key != "partial_rotary_factor"}


def rotates(config: Any) -> bool:
    """Whether some layer's heads are turned by rope."""
    return config.position_embedding_type == "rope" and any(config.rotary_layers)


def _scaled_theta(config: Any) -> dict[str, Any]:
    rope = copy.deepcopy(rope_of(config))
    for settings in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if "rope_theta" in settings:
            settings["rope_theta"] = settings["rope_theta"] * 2
    return {"rope_parameters": rope}


def _unscaled(rope: dict[str, Any]) -> dict[str, Any]:
    # Queries that grow read the last of them whatever the type.
    names = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    return {**{name: rope[name] for name in names if name in rope}, "rope_type": "default"}


def _unscaled_rope(config: Any) -> dict[str, Any]:
    rope = rope_of(config)
    if config.rope_is_per_layer_type:
        return {"rope_parameters": {kind: _unscaled(settings) for kind, settings in rope.items()}}
    return {"rope_parameters": _unscaled(rope)}


def _ropes_in_use(config: Any) -> dict[str, dict[str, Any]]:
    """The rope settings of each kind of layer that rotates."""
    rope = rope_of(config)
    kinds = {kind for kind, turns in zip(config.layer_types, config.rotary_layers, strict=True) if turns}
    return {kind: rope[kind] if config.rope_is_per_layer_type else rope for kind in sorted(kinds)}


def _scales(rope: dict[str, Any]) -> bool:
    """Whether rope is anything but plain; a factor of 1 leaves it plain."""
    kind = rope.get("rope_type", "default")
    return kind != "default" and (rope.get("factor") != 1.0 or kind in ("dynamic", "longrope"))


def _scaled_rope(config: Any) -> bool:
    return rotates(config) and any(map(_scales, _ropes_in_use(config).values()))


def _two_ropes(config: Any) -> bool:
    """Whether two kinds of layers rotate, each in its way."""
    if not rotates(config) or not config.rope_is_per_layer_type or rotated_width(config) <= 2:
        return False
    ropes = [rope if _scales(rope) else _unscaled(rope) for rope in _ropes_in_use(config).values()]
    return len(ropes) == 2 and ropes[0] != ropes[1]


def _exchanged_ropes(config: Any) -> dict[str, Any]:
    kinds = ("full_attention", "sliding_attention")
    rope = copy.deepcopy(rope_of(config))
    return {"rope_parameters": dict(zip(kinds, (rope[kind] for kind in reversed(kinds)), strict=True))}


def _ignores_long_factors(config: Any) -> bool:
    rope = rope_of(config)
    differ = rope.get("long_factor") != rope.get("short_factor")
    return rotates(config) and config.longrope_factors == "short" and differ


@part()
class PositionFields:
    """Positions (`modeling/positions.py`, `modeling/position_biases.py`)."""

    # fmt: off
    position_embedding_type: Literal["rope", "learned", "sinusoidal", "sinusoidal_fairseq", "alibi",
            "relative", "none"] = says(
        "how a token's place is told: by turning queries and keys (`rope`), a table added to the embeddings "
            "(`learned`, `sinusoidal`), a bias on scores (`alibi`, `relative`), or not", default="rope",
        unplanted="other choices have other tensors, or none")
    max_position_embeddings: int = says(
        "longest trained sequence, in tokens; a hard limit for `learned` positions", default=2048,
        within=COUNT, may_idle=True, live=True, small=lambda length: SMALL_CONTEXT, unplanted="a length",
        needs=(Needs(lambda c: c.position_embedding_type not in ("alibi", "none"), "positions"),))
    rope_parameters: Settings | None = says(
        "any rope type of transformers, with `partial_rotary_factor`; one dict, or one for each kind in "
        "`layer_types`. `mscale_all_dim` sharpens latent attention under yarn. No attribute without rope",
        default=None, means=plain_rope,
        wrong=(
            # The first pair of channels turns by one radian a token whatever theta is.
            WrongValue("rope theta doubled", _scaled_theta, lambda c: rotates(c) and rotated_width(c) > 2),
            WrongValue("rope scaling dropped", _unscaled_rope, _scaled_rope),
            WrongValue("ropes of two kinds of layers exchanged", _exchanged_ropes, _two_ropes)))
    rotary_layers: Filled[list[bool]] = says(
        "which layers rotate; default all (with `rope`)", default=None, needs=(_ROPE,),
        fills=lambda c: [c.position_embedding_type == "rope"] * c.num_hidden_layers,
        wrong=(WrongValue("rotation turned off in a layer",
            lambda c: {"rotary_layers": [False] * c.num_hidden_layers}, rotates),
            WrongValue("rotation turned on everywhere",
            lambda c: {"rotary_layers": [True] * c.num_hidden_layers},
            lambda c: rotates(c) and not all(c.rotary_layers)),))
    rotary_precision: Literal["model", "float32_product", "float32"] = says(
        "what half precision rounds: angles' cosines and sines, and the rotation (`model`), the former only "
            "(`float32_product`, Cohere), or neither (`float32`, OLMo 2)", default="model", needs=(ROTATES,),
        unplanted="roundings of single layers are compared")
    rope_interleave: bool = says(
        "latent attention rotates neighbouring entries together (DeepSeek-V3), not halves", default=False,
        needs=(_NEIGHBOURS, ROTATES),
        wrong=(WrongValue("rotated neighbours and halves exchanged",
            lambda c: {"rope_interleave": not c.rope_interleave},
            lambda c: rotates(c) and rotated_width(c) > 2),))
    query_growth_beta: float | int | None = says(
        "queries grow by `1 + beta * log(1 + position // original)`, with rope's "
            "`original_max_position_embeddings` (Llama 4)", default=None, needs=(_ROPE, ROTATES),
        wrong=(WrongValue("growth of the queries dropped", lambda c: {"query_growth_beta": None},
            lambda c: bool(c.query_growth_beta)),))
    longrope_factors: Literal["by_length", "short"] = says(
        "longrope's factors change `by_length`, or `short` ones always apply (Phi-3.5-MoE)",
        default="by_length", needs=(_LONGROPE,),
        wrong=(WrongValue("long rope factors taken beyond the original context",
            lambda c: {"longrope_factors": "by_length"}, _ignores_long_factors),))
    longrope_restarts_cache: bool = says(
        "`generate()` computes the cache anew when the text grows past longrope's original context, where the "
            "frequencies change (Phi-3)", default=False, needs=(_LONGROPE,), live=True,
        unplanted="read by generation")
    position_offset: int = says(
        "added to each position before a learned or sinusoidal table is read", default=0,
        within=between(0, MOST), needs=(_TABLE,),
        wrong=(WrongValue("waves shifted by one position",
            lambda c: {"position_offset": c.position_offset + 1},
            lambda c: c.position_embedding_type.startswith("sinusoidal")),))
    positions_from_attention_mask: bool = says(
        "where no `position_ids` are given, count real tokens only (OPT)", default=False, live=True,
        unplanted="batches with padding are compared")
    alibi_bias_max: float | int = says(
        "the slopes of `alibi` run down to `2 ** -alibi_bias_max`", default=8, within=POSITIVE,
        needs=(_SLOPES,), unplanted="as alibi_multiplier")
    alibi_multiplier: float | int = says(
        "factor on that bias", default=1.0, within=NOT_ZERO, needs=(_SLOPES,),
        wrong=(WrongValue("slopes of distance doubled",
            lambda c: {"alibi_multiplier": 2 * c.alibi_multiplier}),))
    alibi_dtype: Literal["model", "bfloat16", "float32"] = says(
        "what slopes and bias are rounded to first", default="model", needs=(_SLOPES,),
        unplanted="roundings of single layers are compared")
    relative_attention_num_buckets: int = says(
        "kinds of distance in the table of `relative`", default=32, within=between(2, MOST),
        needs=(_DISTANCES,), unplanted="a shape")
    relative_attention_max_distance: int = says(
        "from which distance on all are one kind, in tokens", default=128, within=COUNT, needs=(_DISTANCES,),
        unplanted="a fault of tensors")


def position_problems(config: Any) -> Iterator[str]:
    """What positions may not say together."""
    kind = config.position_embedding_type
    if len(config.rotary_layers) != config.num_hidden_layers:
        yield (
            f"rotary_layers has {len(config.rotary_layers)} entries for "
            f"num_hidden_layers={config.num_hidden_layers}"
        )
    if kind == "relative":
        exact = config.relative_attention_num_buckets // (2 if config.is_causal else 4)
        if not 0 < exact < config.relative_attention_max_distance:
            yield (
                f"relative_attention_max_distance={config.relative_attention_max_distance} must be above the "
                f"{exact} distances that have one of relative_attention_num_buckets="
                f"{config.relative_attention_num_buckets} buckets of their own, which must be 1 or more"
            )
    if kind == "rope":
        yield from _rope_problems(config)


def _rope_problems(config: Any) -> Iterator[str]:
    ropes = rope_of(config)
    kinds = config.nested_rope_parameter_keys(ropes)
    for layer_type in sorted(set(config.layer_types) - set(kinds)):
        if kinds or any(isinstance(value, dict) for value in ropes.values()):
            yield f"rope_parameters={ropes} is given per layer type, but not for '{layer_type}'"
    for rope in [ropes[kind] for kind in kinds] or [ropes]:
        if config.query_growth_beta is not None and "original_max_position_embeddings" not in (rope or {}):
            yield f"query_growth_beta={config.query_growth_beta} needs rope's original_max_position_embeddings"
        if rope is None:
            yield f"rope_parameters={ropes} has None: name layers that do not rotate in rotary_layers"
            return
        yield from rope_problems(rope, config.rotary_head_dim)

"""What rope settings may say: known keys, and numbers that a rotation can be made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ..library.upstream import ROPE_INIT_FUNCTIONS
from .messages import nearest
from .ranges import is_number

# Every setting that a rope type of transformers, or latent attention's scaling, reads.
ROPE_KEYS = frozenset(
    (
        "rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "factor",
        "attention_factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "short_factor",
        "long_factor", "low_freq_factor", "high_freq_factor",
    )
)  # fmt: skip
_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
# What types read of their own beside `rope_theta`, the part that rotates, and the length of its training.
_LIKE_YARN = "factor attention_factor beta_fast beta_slow mscale mscale_all_dim truncate"
_READ = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": tuple(_LIKE_YARN.split()),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
}
_ALWAYS_READ = (
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
)  # fmt: skip
_POSITIVE = (
    "rope_theta", "factor", "attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor",
)  # fmt: skip


def rope_problems(rope: Mapping[str, Any], head_dim: int) -> Iterator[str]:
    """What is wrong with the settings of one rope, each as one sentence.

    Args:
        head_dim: width of the part of a head that rope sees.
    """
    kind = rope.get("rope_type", "default")
    known = ["default", *ROPE_INIT_FUNCTIONS]
    if kind not in known:
        yield f"rope_type={kind!r} is none of {known}"
        return
    for name in ("rope_theta", *_NEEDED.get(kind, ())):
        if rope.get(name) is None:
            yield f"rope_type='{kind}' needs {name} in rope_parameters"
            return
    for name in _POSITIVE:
        value = rope.get(name)
        if value is not None and not (is_number(value) and value > 0):
            yield f"{name}={value!r} in rope_parameters must be a positive number"
            return
    for name in ("mscale", "mscale_all_dim"):
        value = rope.get(name)
        if value is not None and not (is_number(value) and value >= 0):
            yield f"{name}={value!r} in rope_parameters must be a number that is not negative"
    original = rope.get("original_max_position_embeddings")
    if original is not None and not (is_number(original) and original == int(original) and original >= 1):
        yield f"original_max_position_embeddings={original!r} in rope_parameters must be a whole number from 1 on"
        return
    if kind == "longrope" and original == 1 and rope.get("attention_factor") is None:
        yield "original_max_position_embeddings=1 in rope_parameters: 'longrope' divides by its logarithm"
    low, high = rope.get("low_freq_factor"), rope.get("high_freq_factor")
    if low is not None and high is not None and high <= low:
        yield f"high_freq_factor={high} in rope_parameters must be above low_freq_factor={low}"
    part = rope.get("partial_rotary_factor")
    factor = 1.0 if part is None else part
    if not is_number(factor) or not 0 < factor <= 1:
        yield f"partial_rotary_factor={factor!r} must be above 0 and at most 1"
        return
    width = int(head_dim * factor)
    if width < 2 or width % 2:
        yield f"partial_rotary_factor={factor} of head_dim={head_dim} is no even width"
        return
    for name in ("short_factor", "long_factor") if kind == "longrope" else ():
        yield from _factors(name, rope[name], width // 2)


def _factors(name: str, value: Any, expected: int) -> Iterator[str]:
    if not isinstance(value, list) or not all(is_number(item) and item > 0 for item in value):
        yield f"{name}={str(value)[:80]} in rope_parameters must be a list of positive numbers"
    elif len(value) != expected:
        yield f"{name} in rope_parameters has {len(value)} numbers: this head needs {expected}"


def two_ropes(values: Mapping[str, Any], rope: Any) -> Iterator[str]:
    """Settings that stand in an old spelling beside `rope_parameters` and say something else there.

    Args:
        values: fields by name, old spellings among them.
        rope: `rope_parameters`.
    """
    scaling = values.get("rope_scaling")
    if scaling and rope and scaling != rope:
        yield f"rope_scaling={scaling} contradicts rope_parameters={rope}: they are one field"
    rope = scaling or rope
    for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        value = values.get(name)
        if isinstance(rope, Mapping) and value is not None and rope.get(name, value) not in (value, None):
            yield f"{name}={value} contradicts {name}={rope[name]} in rope_parameters: they are one field"


def unread_rope_keys(rope: Mapping[str, Any]) -> list[str]:
    """`name=value` of settings that this type of rope does not read, with the reason."""
    by_kind = any(isinstance(value, Mapping) for value in rope.values())
    if by_kind:
        beside = [
            f"{n}={v!r}, beside one dict a kind of layer" for n, v in rope.items() if not _is_of_kind(v)
        ]
        return beside + [
            key for one in rope.values() if isinstance(one, Mapping) for key in unread_rope_keys(one)
        ]
    kind = rope.get("rope_type", "default")
    known = {*_ALWAYS_READ, *_READ.get(kind, ROPE_KEYS)}
    found = [f"{key}, which no rope type reads" for key in unknown_rope_keys(rope)]
    return found + [
        f"{name}={value!r}, which rope_type='{kind}' does not read"
        for name, value in rope.items()
        if name in ROPE_KEYS and name not in known
    ]


def _is_of_kind(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


def unknown_rope_keys(rope: Mapping[str, Any]) -> list[str]:
    """`name=value` of settings that no rope type reads, with the nearest that one does."""
    return [
        f"{name}={value!r} (nearest: {nearest(str(name), ROPE_KEYS)})"
        for name, value in rope.items()
        if name not in ROPE_KEYS
    ]


def mistyped_rope_keys(rope: Any) -> list[str]:
    """The same, of those only that look like a slip of the pen: published configs have settings that nobody reads."""
    settings = [rope, *rope.values()] if isinstance(rope, Mapping) else []
    found = [one for one in settings if isinstance(one, Mapping)]
    slips = {
        name: value
        for one in found
        for name, value in one.items()
        if not isinstance(value, Mapping) and difflib.get_close_matches(str(name), ROPE_KEYS, n=1, cutoff=0.9)
    }
    return unknown_rope_keys(slips)

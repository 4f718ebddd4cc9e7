"""The one table of fields: all parts together, and what follows from what they say.

A value that changes nothing misleads whoever set it. What somebody says to the constructor or as an override is
refused. What a file says stays: a native config's own idle values come back at export, and earlier versions wrote such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from .attention_fields import AttentionFields, attention_problems
from .block_fields import BlockFields
from .expert_fields import ExpertFields, LayerKindFields, expert_problems
from .feed_forward_fields import FeedForwardFields
from .fields import Facts, Needs, WrongValue, facts_of
from .model_facts import each_layer, rope_of
from .position_fields import PositionFields, position_problems
from .ranges import Range, dtype_problems, out_of_range
from .rope_rules import unread_rope_keys
from .router_fields import RouterFields, router_problems
from .training_fields import TrainingFields, record_problems
from .vocabulary_fields import VocabularyFields, vocabulary_problems

# In the order in which values are filled in and documented.
PARTS: tuple[type, ...] = (
    VocabularyFields, BlockFields, AttentionFields, PositionFields, FeedForwardFields, LayerKindFields, ExpertFields,
    RouterFields, TrainingFields,
)  # fmt: skip
FACTS: dict[str, Facts] = facts_of(*PARTS)
RANGES: dict[str, Range] = {name: facts.within for name, facts in FACTS.items() if facts.within is not None}
PER_LAYER = frozenset(name for name, facts in FACTS.items() if facts.per_layer)
FILLED_IN: dict[str, Callable[[Any], Any]] = {
    name: facts.fills for name, facts in FACTS.items() if facts.fills is not None
}
_STRICT = [name for name, facts in FACTS.items() if any(needs.strict for needs in facts.needs)]
_DEFAULTS = {item.name: item.default for one in PARTS for item in fields(one)}
_RULES = (
    vocabulary_problems, record_problems, attention_problems, position_problems, expert_problems,
    router_problems,
)  # fmt: skip


def wrong_values() -> Iterator[tuple[str, WrongValue]]:
    """Every wrong value that certificates plant, with its field."""
    return ((name, wrong) for name, facts in FACTS.items() for wrong in facts.wrong)


def with_effect(*effects: str) -> frozenset[str]:
    """The fields that have one of these effects; see `Facts`."""
    return frozenset(name for name, facts in FACTS.items() if facts.effect in effects)


def alone_wrong(values: Mapping[str, Any]) -> Iterator[str]:
    """Each field whose value alone is wrong, as one sentence."""
    return out_of_range(values, RANGES, PER_LAYER)


def contradictions(config: Any) -> Iterator[str]:
    """What the fields of a config may not say, alone or together, each as one sentence; the simplest first."""
    for name in FILLED_IN:
        if getattr(config, name) is None:
            yield f"{name}=None was set on a config that is made: give a value"
    yield from alone_wrong(vars(config))
    yield from dtype_problems(config.dtype, None)
    for name in _STRICT:
        if (needs := _missing(config, name)) is not None and needs.strict and not _is_usual(config, name):
            yield _in_vain(config, name, needs)
    for rule in _RULES:
        yield from rule(config)


def is_idle(config: Any, name: str) -> bool:
    """Whether a field has nothing to act on in this config, so that any value means the same."""
    # A field may act in one layer only.
    return all(_missing(layer, name) is not None for layer in each_layer(config))


def _missing(config: Any, name: str) -> Needs | None:
    facts = FACTS.get(name)
    return (
        next((needs for needs in facts.needs if not needs.holds(config)), None) if facts is not None else None
    )


def said_in_vain(config: Any) -> dict[str, str]:
    """Fields with a value other than their default that have nothing to act on, each with a sentence."""
    if config.is_heterogeneous:
        found = [said_in_vain(layer) for layer in each_layer(config)]
        return {name: why for name, why in found[0].items() if all(name in one for one in found)}
    problems = {
        name: _in_vain(config, name, needs) for name, needs in _idle(config) if not _is_usual(config, name)
    }
    if unread := unread_rope_keys(rope_of(config)):
        problems["rope_parameters"] = f"rope_parameters has {'; '.join(unread)}"
    return problems


def idle_and_unsaid(config: Any) -> set[str]:
    """Fields without effect that are what they are where nobody says anything."""
    return {name for name, _ in _idle(config) if _is_usual(config, name)}


def _idle(config: Any) -> Iterator[tuple[str, Needs]]:
    """Fields that act nowhere, except those that are said all the same, each with what it lacks."""
    for name, facts in FACTS.items():
        if (needs := _missing(config, name)) is not None and (needs.strict or not facts.may_idle):
            yield name, needs


def _in_vain(config: Any, name: str, needs: Needs) -> str:
    return f"{name}={getattr(config, name)!r} has no effect without {needs.words}: leave it out, or set that"


def _is_usual(config: Any, name: str) -> bool:
    value, facts = getattr(config, name), FACTS[name]
    return value == _DEFAULTS[name] or (facts.fills is not None and value == facts.fills(config))

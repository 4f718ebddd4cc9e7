"""Which fields two Moeba configs disagree on, leaving out what has nothing to act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..configuration import MoebaConfig
from ..configuration.model_facts import each_layer
from ..configuration.schema import FACTS, is_idle, with_effect

# Fields that change training or outputs, never the function that inference computes.
TRAINING_FIELDS = with_effect("training")
# Those that change nothing, and what the library itself notes in a config.
METADATA_FIELDS = with_effect("metadata") | {
    "architectures", "auto_map", "chunk_size_feed_forward", "id2label", "label2id", "output_hidden_states",
    "problem_type", "return_dict", "transformers_version", "moeba_version", "_name_or_path",
}  # fmt: skip
# Fields that change nothing but the order of a sum.
_ROUNDING_FIELDS = with_effect("rounding")


@dataclass(frozen=True)
class Difference:
    """One field that two configs disagree on."""

    name: str
    first: Any
    second: Any


def differences(first: MoebaConfig, second: MoebaConfig) -> list[Difference]:
    """Fields of the model, not metadata, that differ; values that mean the same compare equal."""
    a, b = _values(first), _values(second)
    names = sorted((set(a) | set(b)) - METADATA_FIELDS - _ROUNDING_FIELDS - {"model_type"})
    return [
        Difference(name, a.get(name), b.get(name))
        for name in names
        if a.get(name) != b.get(name) and not (is_idle(first, name) and is_idle(second, name))
    ]


def _values(config: MoebaConfig) -> dict[str, Any]:
    """Fields in their plainest spelling; where layers differ, as a list."""
    values = config.to_dict()
    values.pop("per_layer_config", None)
    layers = each_layer(config)
    for name in (config.per_layer_attributes or ()) if config.is_heterogeneous else ():
        values[name] = _one_or_all([getattr(layer, name) for layer in layers])
    for name, facts in FACTS.items():
        if facts.means is not None:
            values[name] = _one_or_all([facts.means(layer) for layer in layers])
    return values


def _one_or_all(sizes: list[Any]) -> Any:
    return sizes if len(set(map(str, sizes))) > 1 else sizes[0]

"""What acts in training or on outputs alone, and what is kept of a model's origin."""

import json
from collections.abc import Iterator
from typing import Any

from .fields import WrongValue, part, says
from .messages import short
from .ranges import FRACTION, NOT_NEGATIVE


@part()
class TrainingFields:
    """Dropouts, initialisation, records."""

    # fmt: off
    attention_dropout: float | int = says(
        "share of attention weights", default=0.0, per_layer=True, within=FRACTION, effect="training",
        wrong=(WrongValue("dropout of attention raised",
            lambda c: {"attention_dropout": min(c.attention_dropout + 0.25, 0.9)}, seen="training"),))
    hidden_dropout: float | int = says(
        "share of each branch's answer", default=0.0, within=FRACTION, effect="training")
    embedding_dropout: float | int = says(
        "share of the embeddings", default=0.0, within=FRACTION, effect="training")
    classifier_dropout: float | int = says(
        "share of what the heads of other tasks read", default=0.0, within=FRACTION, effect="training",
        live=True)
    initializer_range: float = says(
        "standard deviation of fresh weights", default=0.02, within=NOT_NEGATIVE, effect="training",
        live=True)
    use_cache: bool = says("keep keys and values in generation", default=True, effect="training", live=True)
    native_fields: dict | None = says(
        "by family, what the config.json that the model was converted from says beside its function; nothing "
            "here reads it, and an export to that family says it again", default=None, effect="metadata",
        small=lambda said: None)


def record_problems(config: Any) -> Iterator[str]:
    """What records of a model's origin may not be."""
    if not _is_by_family(config.native_fields or {}):
        yield f"native_fields={short(config.native_fields)} must hold a dict of JSON values for each family"


def _is_by_family(said: dict[Any, Any]) -> bool:
    try:
        json.dumps(said)
    except (TypeError, ValueError, RecursionError):
        return False
    return all(isinstance(name, str) and isinstance(values, dict) for name, values in said.items())

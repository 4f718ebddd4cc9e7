"""Fields that a model reads once, when it is built: setting one on its config later must not be ignored.

`model.config.num_experts_per_tok = 4` changes no module. The next forward says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from operator import itemgetter
from typing import Any

from ..configuration.configuration_moeba import MoebaConfig
from ..configuration.schema import FACTS
from ..library.upstream import PreTrainedConfig

# Those of the library's own class are its own to set: a resized vocabulary, fewer layers for early exit.
_NAMES = tuple(
    name
    for name, facts in FACTS.items()
    if not facts.live and name not in {inherited.name for inherited in fields(PreTrainedConfig)}
)


@dataclass(frozen=True)
class Built:
    """Fields that modules have copied, and their values. Read and compared at once, in every forward."""

    names: tuple[str, ...]
    values: tuple[Any, ...]
    read: Callable[[Mapping[str, Any]], tuple[Any, ...]]


def built_with(config: MoebaConfig) -> Built:
    """The fields that modules have copied, with their values."""
    values = vars(config)
    names = tuple(name for name in _NAMES if name in values)
    return Built(names, copy.deepcopy(tuple(values[name] for name in names)), itemgetter(*names))


def refuse_changed(config: MoebaConfig, built: Built) -> None:
    """
    Args:
        config: the model's, as it is now.
        built: `built_with` of it when the model was made.

    Raises:
        ValueError: a field was changed since, which the model does not follow.
    """
    values = vars(config)
    try:
        if built.read(values) == built.values:
            return
    except KeyError:  # a field is gone
        pass
    for name, value in zip(built.names, built.values, strict=True):
        if (now := values.get(name)) != value:
            raise ValueError(
                f"config.{name} was set to {now!r}, but this model was built with {value!r} and keeps it: load it with "
                f"from_pretrained(folder, {name}={now!r}) instead, or build another model from a copy of the config."
            )

"""Fields that a model reads once, when it is built: setting one on its config later must not be ignored.

`model.config.num_experts_per_tok = 4` changes no module. The next forward says so.
"""

from __future__ import annotations

import copy
from dataclasses import fields
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


def built_with(config: MoebaConfig) -> dict[str, Any]:
    """The fields that modules have copied, with their values."""
    values = vars(config)
    return {name: copy.deepcopy(values[name]) for name in _NAMES if name in values}


def refuse_changed(config: MoebaConfig, built: dict[str, Any]) -> None:
    """
    Args:
        config: the model's, as it is now.
        built: `built_with` of it when the model was made.

    Raises:
        ValueError: a field was changed since, which the model does not follow.
    """
    values = vars(config)
    for name, value in built.items():
        if (now := values.get(name)) != value:
            raise ValueError(
                f"config.{name} was set to {now!r}, but this model was built with {value!r} and keeps it: load it with "
                f"from_pretrained(folder, {name}={now!r}) instead, or build another model from a copy of the config."
            )

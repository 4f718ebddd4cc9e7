"""The supported families, one file each. A new file with a `FAMILY` in it is all that registering takes."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from ...library.window import installed
from ..family import Family
from ..unsupported import UNSUPPORTED


def _load() -> dict[str, Family]:
    modules = [importlib.import_module(f".{info.name}", __name__) for info in pkgutil.iter_modules(__path__)]
    families = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.model_type: family for family in sorted(families, key=lambda family: family.model_type)}


# Those of every release that Moeba runs with, and those whose models the installed one has.
KNOWN_FAMILIES: dict[str, Family] = _load()
ALIASES: dict[str, str] = {alias: name for name, family in KNOWN_FAMILIES.items() for alias in family.aliases}
FAMILIES = {name: family for name, family in KNOWN_FAMILIES.items() if name in CONFIG_MAPPING}


def family_of_config(config: Mapping[str, Any]) -> Family:
    """The family of the model of a config.json; see `family_of`. One that wraps a text model is told of that."""
    if config.get("model_type") is None:
        raise ValueError("config.json names no model_type: write there the family that its tensors are of.")
    try:
        return family_of(config["model_type"])
    except ValueError as error:
        inner = config.get("text_config")
        wrapped = inner.get("model_type") if isinstance(inner, Mapping) else None
        if not isinstance(wrapped, str) or ALIASES.get(wrapped, wrapped) not in FAMILIES:
            raise
        raise ValueError(
            f"{error} It wraps a {wrapped!r} model (text_config), which is supported: load the whole with transformers "
            "and save its text model alone, as a causal language model."
        ) from error


def family_of(model_type: Any) -> Family:
    """The family of a model type.

    Raises:
        ValueError: it is not supported, and why, or else the nearest supported names; or it needs a later release
            of transformers, which is named.
    """
    if not isinstance(model_type, str | None):
        raise ValueError(f"model_type={model_type!r} is no name of a family.")
    model_type = ALIASES.get(model_type or "", model_type)
    if model_type in UNSUPPORTED:
        raise ValueError(f"model_type={model_type!r} is not supported: {UNSUPPORTED[model_type]}.")
    if model_type in KNOWN_FAMILIES and model_type not in FAMILIES:
        raise ValueError(
            f"model_type={model_type!r} needs transformers {KNOWN_FAMILIES[model_type].since} or later: "
            f"{installed('transformers')} is installed."
        )
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(str(model_type), FAMILIES, n=3, cutoff=0.6)
        hint = f"Nearest: {', '.join(near)}. " if near else ""
        raise ValueError(
            f"model_type={model_type!r} is not supported. {hint}`moeba families` lists all {len(FAMILIES)}."
        )
    return FAMILIES[model_type]

"""The supported families, one file each. A new file with a `FAMILY` in it is all that registering takes."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

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
FAMILIES = {name: family for name, family in KNOWN_FAMILIES.items() if name in CONFIG_MAPPING}


def family_of(model_type: str | None) -> Family:
    """The family of a model type.

    Raises:
        ValueError: it is not supported, and why, or else the nearest supported names; or it needs a later release
            of transformers, which is named.
    """
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

"""The supported families, one file each. A new file with a `FAMILY` in it is all that registering takes."""

from __future__ import annotations

import importlib
import pkgutil

from ..family import Family
from ..json_files import listing
from ..unsupported import UNSUPPORTED


def _load() -> dict[str, Family]:
    modules = [importlib.import_module(f".{info.name}", __name__) for info in pkgutil.iter_modules(__path__)]
    families = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.model_type: family for family in sorted(families, key=lambda family: family.model_type)}


FAMILIES: dict[str, Family] = _load()


def family_of(model_type: str | None) -> Family:
    """The family of a model type.

    Raises:
        ValueError: it is not supported; why, or else the supported ones are listed.
    """
    if model_type in UNSUPPORTED:
        raise ValueError(f"model_type={model_type!r} is not supported: {UNSUPPORTED[model_type]}.")
    if model_type not in FAMILIES:
        supported = listing(list(FAMILIES), limit=100)
        raise ValueError(f"model_type={model_type!r} is not supported. Supported: {supported}.")
    return FAMILIES[model_type]

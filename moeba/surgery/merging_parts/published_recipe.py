"""A merge's recipe as its record shows it: what lies on this machine goes by its last name, a Hub id by its whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...conversion.paths import expanded
from ...conversion.selection.private_paths import PROMPTS, name_of, names_only, rewritten, without_paths

# Under which a recipe names models, adapters and files.
_REFERENCES = ("base_model", "source_model", "adapter", "calibration", "model", "lora", "path")


def published(given: Any, folder: Path, key: str = "") -> Any:
    """`given`, a recipe or a part of it under `key`, whose paths are relative to `folder` or the working directory."""
    if isinstance(given, Mapping):
        return {name: published(value, folder, str(name)) for name, value in given.items()}
    if isinstance(given, list | tuple):
        return [published(value, folder, key) for value in given]
    if key in PROMPTS:
        return given
    if key in _REFERENCES and isinstance(given, str | Path):
        return _name(os.fspath(given), folder)
    return names_only(given)


def published_text(text: str, folder: Path) -> str:
    """The same for a recipe's file; what is not a path stays as it was written."""

    def rename(key: str, value: str) -> str:
        return _name(value, folder) if key in _REFERENCES else without_paths(value)

    return rewritten(text, rename)


def _name(reference: str, folder: Path) -> str:
    """`model` for `/home/me/model`, `model@revision+adapter` for both of them with paths, and `user/model` as it is."""
    if here := _located(reference, folder):
        return here
    model, plus, adapter = reference.partition("+")
    if plus:
        return f"{_name(model, folder)}+{_name(adapter, folder)}"
    path, at, revision = reference.rpartition("@")
    if at and (here := _located(path, folder)):
        return f"{here}@{revision}"
    is_hub_id = (
        reference.count("/") <= 1 and "\\" not in reference and not reference.startswith((".", "/", "~"))
    )
    return reference if is_hub_id else name_of(reference)


def _located(path: str, folder: Path) -> str:
    """The name of what is at `path` on this machine; empty where nothing is."""
    for place in (folder / expanded(path), expanded(path)):
        if path and os.path.exists(place):
            return Path(os.path.abspath(place)).name
    return ""

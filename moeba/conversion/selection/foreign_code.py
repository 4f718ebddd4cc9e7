"""Code of others that a folder would make its readers run: entries of its JSON files that name it are dropped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..json_files import read_json
from .links import what_it_is
from .side_files import LeftOut

# What transformers takes from where the entry says, with `trust_remote_code=True`.
ENTRIES = ("auto_map", "custom_pipelines")
_MODULES = "modules.json"  # of sentence-transformers
BESIDE = (
    *("tokenizer_config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    "video_preprocessor_config.json",
)


def foreign_entries(folder: Path) -> list[tuple[str, str]]:
    """File and entry of all that lies beside config.json and names code: of what Moeba writes, nothing does."""
    found = [(path.name, entry) for path, _, entries in _found(folder, BESIDE) for entry in entries]
    return [*found, *((_MODULES, f"type {name}") for name in _foreign_modules(folder))]


def drop_foreign_code(folder: Path, names: Sequence[str] = BESIDE) -> list[LeftOut]:
    """Drop those entries, and say which. Tokenizers and processors then load by their class, or not at all.

    Args:
        names: the files to look into; with config.json, a native model's is meant, which needs no code.
    """
    dropped = []
    for path, values, entries in list(_found(folder, names)):
        kept = {name: value for name, value in values.items() if name not in entries}
        unfinished = path.with_name(f".{path.name}.tmp")
        unfinished.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
        dropped += [LeftOut(f"{entry} of {path.name}", "it names code of others") for entry in entries]
    if _foreign_modules(folder):
        (folder / _MODULES).unlink()
        dropped.append(LeftOut(_MODULES, "it names code of others"))
    return dropped


def names_foreign_code(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, of another model type than Moeba's, needs code that no library holds."""
    return any(config.get(entry) for entry in ENTRIES)


def _foreign_modules(folder: Path) -> list[str]:
    """Types in sentence-transformers' list of modules that it has to fetch, from the folder or from elsewhere."""
    path = folder / _MODULES
    if what_it_is(path, folder):
        return []
    try:
        modules = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return []
    types = [str(module.get("type")) for module in modules if isinstance(module, dict)]
    return [name for name in types if not name.startswith("sentence_transformers.")]


def _found(folder: Path, names: Sequence[str]) -> Iterator[tuple[Path, dict[str, Any], list[str]]]:
    for path in (folder / name for name in names):
        if what_it_is(path, folder):
            continue
        try:
            values = read_json(path)
        except ValueError:
            continue  # whoever reads it says what is wrong with it
        if entries := [entry for entry in ENTRIES if entry in values]:
            yield path, values, entries

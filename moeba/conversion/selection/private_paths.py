"""Paths of the machine that a folder was made on: the records in it name files and folders, and not where they lay."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from ..json_files import read_json
from .links import what_it_is

# An absolute path inside a text: from the root, a home folder, a drive or a share; at least one folder and a name.
_ABSOLUTE = re.compile(
    r"""(?<![\w./\\~<])(?!(?<=:)//)   # neither in a word or a relative path, nor an address on the web
    (?:file://)?
    (?: ~\w*[/\\] | [A-Za-z]:[/\\]+ | \\\\ | / )
    (?: PART (?:\ PART){0,8}? [/\\]+ )+
    PART [/\\]?""".replace("PART", r"""[^\s/\\"'`<>|:;,()\[\]{}]+"""),
    re.VERBOSE,
)
_WHOLE = re.compile(r"(?:file://)?(?:~\w*[/\\]|[A-Za-z]:[/\\]|\\\\|/)[^\n]*")
# What a person gave a model to read: no path, even where it looks like one.
PROMPTS = ("positive_prompts", "negative_prompts")
_UNREAD = (*PROMPTS, "log_history")  # the last has figures alone, and many


def name_of(path: str | os.PathLike[str]) -> str:
    """The last part of a path of any system: `model` of `C:\\work\\model`."""
    text = os.fspath(path).rstrip("/\\")
    return PureWindowsPath(text).name or text.strip("/\\") or "/"


def names_only(value: Any) -> Any:
    """A record with every absolute path in it replaced by its last part; `Path`s become texts.

    Texts of prompts stay as they are.
    """
    if isinstance(value, os.PathLike):
        return name_of(value)
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, Mapping):
        return {names_only(key): item if key in _UNREAD else names_only(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [names_only(item) for item in value]
    return value


def without_paths(text: str) -> str:
    """The same for one text: a path alone, or a sentence with paths in it."""
    if _WHOLE.fullmatch(text) and _is_path(text):
        return name_of(text)
    return _ABSOLUTE.sub(lambda found: name_of(found[0]), text)


def scrub_records(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Take the paths out of those JSON files of `folder` that are there, and return which were changed.

    A file that holds none keeps its bytes; one that is no JSON object is left to whoever reads it.
    """
    changed = []
    for path in (folder / name for name in names):
        if what_it_is(path, folder):
            continue
        try:
            record = read_json(path)
        except ValueError:
            continue
        told = names_only(record)
        if told != record:
            unfinished = path.with_name(f".{path.name}.tmp")
            unfinished.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(unfinished, path)
            changed.append(path.name)
    return changed


def _is_path(text: str) -> bool:
    """A text that begins as a path may be one as a whole, with spaces, if it is there or has no space."""
    return " " not in text or os.path.exists(os.path.expanduser(text.removeprefix("file://")))

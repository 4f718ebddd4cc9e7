"""Paths of the machine that a folder was made on: the records in it name files and folders, and not where they lay."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

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
_RECIPE = "recipe_text"  # of surgery.json: YAML
_TAGS = re.compile(r"(?:[&!]\S*\s+)*")  # in YAML: an anchor that other places refer to, or a type
_HEAD = re.compile(r"---[^\S\n]*\n.*?\n---[^\S\n]*(?:\n|\Z)", re.DOTALL)
# Files of a model that hold settings, which tools fill with the paths that they read from or write to.
_COMPANIONS = (
    *("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "adapter_config.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "[0-9]*_*/config.json"),
)
# What is text for or of a model in them: no path, even where it looks like one.
_TEXTS = re.compile(
    r"chat_template|stop_strings|prompts?|content|added_tokens_decoder|tokens|.*_tokens?|.*prompt.*|.*template.*"
)


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
        return {
            names_only(key): item if key in _UNREAD else _of_key(key, item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [names_only(item) for item in value]
    return value


def _of_key(key: Any, item: Any) -> Any:
    return rewritten(item) if key == _RECIPE and isinstance(item, str) else names_only(item)


def without_paths(text: str) -> str:
    """The same for one text: a path alone, or a sentence with paths in it."""
    if _WHOLE.fullmatch(text) and _is_path(text):
        return name_of(text)
    return _ABSOLUTE.sub(lambda found: name_of(found[0]), text)


def scrub_records(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Take the paths out of those JSON files of `folder` that are there, and return which were changed.

    A file that holds none keeps its bytes; one that is no JSON is left to whoever reads it.
    """
    return [name for name in names if _scrub(folder / name, folder, names_only)]


def scrub_companions(folder: Path) -> list[str]:
    """The same for the settings beside a model: a value that is a path becomes its name; templates and tokens stay."""
    paths = sorted(path for pattern in _COMPANIONS for path in folder.glob(pattern))
    return [str(path.relative_to(folder)) for path in paths if _scrub(path, folder, _without_whole_paths)]


def _without_whole_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: item if _TEXTS.fullmatch(key) else _without_whole_paths(item) for key, item in value.items()
        }
    if isinstance(value, list):
        return [_without_whole_paths(item) for item in value]
    is_path = isinstance(value, str) and _WHOLE.fullmatch(value) and _ABSOLUTE.match(value)
    return without_paths(value) if is_path else value


def head_of_card(text: str) -> str:
    """The lines of a card that hold its metadata, `---` before and after; empty where it has none."""
    found = _HEAD.match(text)
    return found[0] if found else ""


def scrub_card(folder: Path) -> bool:
    """The same for the metadata of README.md, where tools name the folder that a model was made from."""
    path = folder / "README.md"
    if what_it_is(path, folder):
        return False
    text = path.read_bytes().decode("utf-8", errors="surrogateescape")
    head = head_of_card(text)
    if (told := rewritten(head)) == head:
        return False
    path.write_bytes((told + text[len(head) :]).encode("utf-8", errors="surrogateescape"))
    return True


def _scrub(path: Path, folder: Path, told: Callable[[Any], Any]) -> bool:
    if what_it_is(path, folder):
        return False
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    new = told(record)
    if new == record:
        return False
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(json.dumps(new, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return True


def _is_path(text: str) -> bool:
    """A text that begins as a path may be one as a whole, with spaces, if it is there or has no space."""
    return " " not in text or os.path.exists(os.path.expanduser(text.removeprefix("file://")))


def rewritten(text: str, rename: Callable[[str, str], str] = lambda key, value: without_paths(value)) -> str:
    """The text of a YAML recipe, each value of it as `rename(key, value)` has it, and comments without paths.

    Prompts, and all else of how it is written, stay.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return without_paths(text)
    parts, end = [], 0
    for key, node in sorted(_scalars(root, ""), key=lambda found: found[1].start_mark.index):
        start, stop = node.start_mark.index, node.end_mark.index
        if start < end:
            continue  # the same value once more, by an alias
        written = text[start:stop]
        parts += [
            without_paths(text[end:start]),
            written if key in PROMPTS else _replaced(written, node.value, rename(key, node.value)),
        ]
        end = stop
    return "".join([*parts, without_paths(text[end:])])


def _scalars(node: yaml.Node | None, key: str) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Every value with the key that it, or the list around it, stands under; and the keys themselves."""
    if isinstance(node, yaml.ScalarNode):
        yield key, node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item, key)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _scalars(name, "")
            yield from _scalars(value, str(name.value))


def _replaced(written: str, value: str, new: str) -> str:
    if new == value:
        return written
    tags = _TAGS.match(written)
    plain = re.fullmatch(r"[A-Za-z_][\w.@+-]*", new) and yaml.safe_load(new) == new
    return (
        f"{tags[0] if tags else ''}{new if plain else json.dumps(new, ensure_ascii=False)}"
        + "\n" * written.endswith("\n")
    )

"""The text of a YAML recipe, for a record that is published: paths are replaced, everything else stays as written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import yaml

from .private_paths import PROMPTS, without_paths

_TAGS = re.compile(r"(?:[&!]\S*\s+)*")  # an anchor that other places refer to, or a type


def rewritten(text: str, rename: Callable[[str, str], str] = lambda key, value: without_paths(value)) -> str:
    """`text` with each value of it as `rename(key, value)` has it, and comments without paths; prompts stay."""
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

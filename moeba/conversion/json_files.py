"""JSON objects from files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..configuration.messages import listing

_DEEPEST = 100  # levels of JSON; files that people and tools write have a few


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. ValueError where it is no file, not valid, not an object, or says a key twice."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file, but a folder, a pipe or a device")
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `text`; `what` names it in errors."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
            raise ValueError(f"these keys stand twice: {listing(repeated)}")
        return value

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} must hold a JSON object, not a {type(value).__name__}")
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        inside = (item for one in level for item in (one.values() if isinstance(one, dict) else one))
        level = [item for item in inside if isinstance(item, dict | list)]
    if level:  # whoever goes through it by recursion would end in it
        raise ValueError(f"{what} is nested more than {_DEEPEST} levels deep")
    return value


__all__ = ["listing", "parse_json", "read_json"]

"""Names, values and lists in messages: on one line, and no longer than a person reads."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any

_LARGEST = 10**18  # beyond, an integer is told by its size: Python does not even print the longest
LISTED = 10  # whatever is listed: more is not read, and buries what else is said


def short(value: Any) -> str:
    """A value for a message; what is very long only begins."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"{'-' * (value < 0)}10^{value.bit_length() * 0.30103:.0f}"
    return begun(repr(value), 200)


def begun(text: str, longest: int) -> str:
    """The text, or where it has more characters than `longest`, its beginning and how many they are."""
    return text if len(text) <= longest else f"{text[: longest * 4 // 5]}… ({len(text)} characters)"


def nearest(name: str, known: Collection[str]) -> str:
    """The known name most like a mistyped one."""
    return difflib.get_close_matches(name[:100], known, n=1, cutoff=0.0)[0]


def listing(offenders: Sequence[str]) -> str:
    """Offenders for an error message on one line: the first ten, and how many more there are."""
    more = len(offenders) - LISTED
    return "; ".join(offenders[:LISTED]) + (f"; … and {more} more" if more > 0 else "")

"""Text from a file as Markdown that shows it and does nothing: no link, no image, no HTML, no heading, no second cell.

Names, licences, notes and values of configs come from strangers' folders; the card is read as the folder's own word.
"""

from __future__ import annotations

import re

# What readers of Markdown make a link of by themselves, escaped or not; only as code it stays what it is.
_ADDRESS = re.compile(r":/|www\.|@|mailto:", re.IGNORECASE)
_ACTIVE = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
# What begins a block, if it is the first of a list's item: a heading, a quote, a list, a rule.
_BEGINNING = re.compile(r"^(?:>|#(?=#* |#*$)|[+-](?= |$)|-(?=[- ]*$)|=(?==*$)|\d+(?=[.)](?: |$)))")
# Neither seen nor wanted: controls, and those that turn the direction of what follows.
_UNSEEN = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
_PLAIN_LINK = re.compile(r"https?://[A-Za-z0-9][\w.~:/?#!$&'*+,;=%-]*", re.ASCII)


def cell(text: object) -> str:
    """Any text as one line, for a paragraph, an item of a list or a cell of a table."""
    words = [code(word) if _ADDRESS.search(word) else _escaped(word) for word in _line(text).split(" ")]
    return _BEGINNING.sub(_behind_a_backslash, " ".join(words))


def code(text: object) -> str:
    """The same, as inline code; there only backticks, line breaks and bars of a table do harm."""
    return "`" + (_line(text).replace("`", "'").replace("|", "\\|") or " ") + "`"


def link(address: object) -> str:
    """A link that shows where it leads, if it is a plain one to the web, and else inline code."""
    line = _line(address)
    return f"<{line}>" if _PLAIN_LINK.fullmatch(line) else code(line)


def safe_link(address: str | None) -> str | None:
    """For the card's metadata, of which the Hub makes a link: to the web, or to a file of the repository; else none."""
    is_safe = address and (_PLAIN_LINK.fullmatch(address) or re.fullmatch(r"[\w.-]+", address))
    return address if is_safe else None


def fenced(text: str) -> tuple[str, str]:
    """Text of several lines for a block of code, and the fence that it cannot close.

    The marks of a card, which are looked for by lines, do not stand in it.
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return re.sub(r"^<!--", " <!--", text, flags=re.MULTILINE), "`" * max(3, longest + 1)


def _line(text: object) -> str:
    return " ".join(_UNSEEN.sub("", str(text)).split())


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return _ACTIVE.sub(lambda found: f"\\{found[0]}", text)


def _behind_a_backslash(found: re.Match[str]) -> str:
    """`\\#`, and `1\\.`, whose number cannot be escaped itself."""
    return f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}"

"""The Python standard library as a text corpus, which every machine that runs Python already has.

About 10 MB of code and 1.5 MB of English docstrings, in the same order each time they are read. Another
version of Python has another library, so a measurement on this corpus names the version.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["code", "docstrings"]
Choice = Literal["code", "docstrings", "all"]

LARGEST_FILE = 200_000
"""Files of more bytes than this are left out: they are tables rather than text."""

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "_bundled", "dist-packages", "idle_test", "lib2to3", "site-packages", "test", "tests"}
)
"""What is not the library itself: installed packages, tests and their deliberately broken files."""

SKIPPED_PREFIXES = ("config-", "_sysconfigdata")
"""What was generated when this Python was built, and so differs from machine to machine."""


@dataclass(frozen=True)
class Document:
    """One file of the library.

    Attributes:
        path: Where it is, relative to the library, with `/` on every system.
        kind: `code` for the whole source, `docstrings` for the docstrings alone.
        text: What it says, with `\\n` line ends.
    """

    path: str
    kind: Kind
    text: str


def documents(kind: Choice = "all") -> list[Document]:
    """The corpus, sorted by path; with `all`, the code of a file comes right before its docstrings.

    Raises:
        ValueError: `kind` is not one of `code`, `docstrings` and `all`.
    """
    if kind not in get_args(Choice):
        raise ValueError(f"kind is {kind!r}; pass one of {', '.join(get_args(Choice))}.")
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[Document] = []
    for path, source in _sources(root):
        if kind != "docstrings":
            found.append(Document(path, "code", source))
        if kind != "code" and (text := docstrings(source)):
            found.append(Document(path, "docstrings", text))
    return found


def docstrings(source: str) -> str:
    """The cleaned docstrings of a module, its classes and its functions, in the order of the file.

    A blank line stands between two. Source that this Python cannot parse has none.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, owners)]
    # `walk` goes level by level; the order of the file has to be restored. A module has no line of its own.
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)))


def split(
    found: list[Document], held_out: float = 0.05, seed: int = 0
) -> tuple[list[Document], list[Document]]:
    """Divide documents into those to train on and those to evaluate on, both in the order given.

    A file's side is decided by a hash of its path, so its code and its docstrings never part, and a file
    stays on its side when others come or go.

    Args:
        found: What to divide.
        held_out: Expected share of files to evaluate on, in [0, 1); a short list may miss it by much.
        seed: Another seed gives another division.

    Raises:
        ValueError: `held_out` is outside [0, 1).
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is {held_out}; it is a share of the files, so pass one in [0, 1).")
    train: list[Document] = []
    evaluation: list[Document] = []
    for document in found:
        side = evaluation if _draw(document.path, seed) < held_out else train
        side.append(document)
    return train, evaluation


def _sources(root: Path) -> Iterator[tuple[str, str]]:
    """Relative path and source of each readable, not empty file below `root`, sorted by path."""
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    for relative in sorted(paths):
        if _skipped(relative) or paths[relative].stat().st_size > LARGEST_FILE:
            continue
        try:
            source = paths[relative].read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if source.strip():
            yield relative, source


def _skipped(relative: str) -> bool:
    parts = relative.split("/")
    return not SKIPPED_FOLDERS.isdisjoint(parts) or any(part.startswith(SKIPPED_PREFIXES) for part in parts)


def _draw(path: str, seed: int) -> float:
    """A number in [0, 1) that depends on the path and the seed alone, as `hash` would not."""
    digest = hashlib.blake2b(f"{seed}:{path}".encode(), digest_size=8).digest()
    # 53 bits, as many as a float holds exactly: all 64 could round up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53

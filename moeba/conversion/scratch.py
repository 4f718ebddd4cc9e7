"""Temporary folders that a killed process does not leave for ever."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .destination import fcntl, locked, remove
from .replaceable import LOCK


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A new temporary folder that is removed afterwards; what killed processes left of the same purpose goes first."""
    _sweep(purpose)
    with tempfile.TemporaryDirectory(prefix=_prefix(purpose)) as name, locked(Path(name)):
        inside = Path(name) / purpose
        inside.mkdir()
        yield inside


def _sweep(purpose: str) -> None:
    """Remove this user's folders whose lock nobody holds any more."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix(purpose)}*"):
        with suppress(ValueError, OSError):  # in use, or gone meanwhile
            if (folder / LOCK).is_file() and not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                with locked(folder):
                    remove(folder)


def _prefix(purpose: str) -> str:
    return f"moeba-{purpose}-"

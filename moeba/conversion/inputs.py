"""The files that a run reads: whether they are still what they were, now and in a later run that continues it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .hashes import Identity, identity_of, known_sha256, sha256_of


class Inputs:
    """Files as they are now. Size and modification time can be kept when a file is replaced: they prove nothing.

    A file is the same if nothing about it changed, or if its SHA-256 is known from before and is the same still.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._begun = [identity_of(path) for path in self.paths]

    def changed(self) -> list[Path]:
        """Those that are no longer what they were when this was made."""
        return self.changed_since(self.record())

    def record(self) -> list[dict[str, Any]]:
        """What a later run needs to tell; hashes are there as far as they have been computed."""
        return [{"identity": list(begun), "sha256": known_sha256(begun)} for begun in self._begun]

    def changed_since(self, record: Sequence[dict[str, Any]]) -> list[Path]:
        """Those that are not what they were when `record` was made, in the order of the paths.

        Raises:
            ValueError: the record is of other files.
        """
        return [path for path, then in zip(self.paths, record, strict=True) if not _is_same(path, then)]

    def __add__(self, other: Inputs) -> Inputs:
        both = Inputs(())
        both.paths, both._begun = self.paths + other.paths, self._begun + other._begun
        return both


def _is_same(path: Path, then: dict[str, Any]) -> bool:
    try:
        now: Identity = identity_of(path)
        return list(now) == then["identity"] or bool(then["sha256"]) and sha256_of(path) == then["sha256"]
    except OSError:
        return False

"""Copies of large files as parts of a folder: shared extents where the file system has them, or links on request."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .destination import Flusher, fcntl
from .hashes import RunningHash, remember, sha256_of

_SLICE = 1 << 24  # bytes copied at a time, while as many are hashed
_FICLONE = (
    0x40049409  # of Linux: one file takes over the extents of another, copied when either is written to
)


@dataclass(frozen=True)
class CopiedPart:
    """
    Attributes:
        source: the file; a link is followed.
        file: the name of the copy.
        size: of the source, in bytes.
        hardlink: another name of the same file instead. Whoever writes into it writes into the source.
    """

    source: Path
    file: str
    size: int
    hardlink: bool = False

    @classmethod
    def of(cls, path: Path, hardlink: bool) -> CopiedPart:
        source = path.resolve()
        return cls(source, path.name, source.stat().st_size, hardlink)

    @property
    def nbytes(self) -> int:
        return self.size

    @property
    def words(self) -> str:
        return f"{'link to' if self.hardlink else 'copy of'} {self.file}, {self.size} bytes"

    def write(self, path: Path, advance: Callable[[int, str], None]) -> str:
        """
        Raises:
            ValueError: a link cannot be made there.
        """
        if self.hardlink:
            sha256 = self._link(path)
            advance(self.size, self.file)
            return sha256
        with self.source.open("rb") as source, path.open("w+b") as file:
            with Flusher(file) as flusher, RunningHash() as running:
                if _share_extents(source, file):
                    advance(self.size, self.file)
                else:
                    self._copy(source, file, flusher, running, advance)
                sha256 = running.finish(file)
                flusher.finish()
        return sha256

    def _copy(
        self,
        source: BinaryIO,
        file: BinaryIO,
        flusher: Flusher,
        running: RunningHash,
        advance: Callable[[int, str], None],
    ) -> None:
        offset = 0
        while data := source.read(_SLICE):
            running.update(offset, data)
            file.write(data)
            offset += len(data)
            flusher.wrote(len(data))
            running.wait(_SLICE)
            advance(len(data), self.file)
        if offset != self.size:
            raise ValueError(f"{self.source} changed while it was read: run again")

    def _link(self, path: Path) -> str:
        sha256 = sha256_of(self.source)
        # A link more changes the file's status: known before, it is known to be the same after.
        remember(self.source, sha256, always=True)
        path.unlink(missing_ok=True)
        try:
            os.link(self.source, path)
        except OSError as error:
            raise ValueError(
                f"{self.source} cannot be linked into {path.parent} ({error.strerror}): leave out --hardlink "
                "(hardlink=True), so that it is copied"
            ) from error
        return sha256


def _share_extents(source: BinaryIO, file: BinaryIO) -> bool:
    """Make `file` a copy of `source` that takes no space, where the file system can."""
    if fcntl is None:
        return False
    ioctl: Any = fcntl.ioctl
    try:
        ioctl(file.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False
    return True

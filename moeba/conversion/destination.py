"""The folder that an operation makes: refused where it would damage something, locked, and renamed into place."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

# There are no such locks on Windows.
fcntl: ModuleType | None = importlib.import_module("fcntl") if os.name == "posix" else None
LOCK = ".lock"


def check_destination(source_folder: str | Path, destination: str | Path, overwrite: bool = False) -> None:
    """Refuse a destination that would damage something, before any work is done.

    Raises:
        ValueError: it is the source, inside it or around it; a file; a folder that exists, without
            `overwrite`; a folder that is no checkpoint, even with it; or its parent cannot be written.
    """
    check_apart(source_folder, destination)
    check_free(Path(destination).expanduser().resolve(), overwrite)


def check_apart(source_folder: str | Path, destination: str | Path) -> None:
    """Refuse a destination that is the source, inside it or around it; see `check_destination`."""
    origin = Path(source_folder).expanduser().resolve()
    target = Path(destination).expanduser().resolve()
    if origin == target or (target.exists() and os.path.samefile(origin, target)):
        raise ValueError(f"{destination} is the source itself: choose another destination")
    if origin in target.parents or target in origin.parents:
        inside = "inside" if origin in target.parents else "around"
        raise ValueError(f"{destination} is {inside} the source {source_folder}: choose another destination")


def check_free(destination: Path, overwrite: bool) -> None:
    """Refuse a destination that is taken or cannot be written; see `check_destination`."""
    if destination.exists():
        if not destination.is_dir():
            raise ValueError(f"{destination} is a file: choose another destination")
        if not overwrite:
            raise ValueError(f"{destination} exists: choose another destination, or overwrite it")
        if any(destination.iterdir()) and not (destination / "config.json").is_file():
            raise ValueError(
                f"{destination} holds no config.json and may be no checkpoint: it is not overwritten"
            )
    parent = next(path for path in destination.parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{parent} cannot be written: choose another destination than {destination}")


def partial_folder(destination: Path) -> Path:
    """Where the output for `destination` is made: a hidden folder beside it."""
    return destination.with_name(f".{destination.name}.partial")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` and hold its lock, so that two runs never write into it at once.

    Where the system or the file system has no locks, there is none.
    """
    descriptor = _acquire(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _acquire(folder: Path) -> int | None:
    while True:
        folder.mkdir(exist_ok=True)
        if fcntl is None:
            return None
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ValueError(f"another run is writing into {folder}: wait for it to end") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(descriptor)
                raise
        # The last holder may have published the folder, lock file and all, since this run opened it.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK)):
                return descriptor
        os.close(descriptor)


def move_into_place(folder: Path, destination: Path, *scaffolds: str) -> None:
    """Make the finished folder the destination; one that is already there is put back if that fails.

    Args:
        scaffolds: files in it that served the work alone. They and the lock are removed once it is in place: without
            them, a run that is killed before could not be continued.
    """
    for path in (*folder.iterdir(), folder):
        sync(path)
    aside = _aside(destination)
    replaced = destination.exists()
    if replaced:
        os.rename(destination, aside)
    try:
        os.rename(folder, destination)
    except BaseException:
        if replaced:
            os.rename(aside, destination)
        raise
    sync(destination.parent)
    # The lock only now: without it, another run could take the folder over before the rename.
    for name in (*scaffolds, LOCK):
        (destination / name).unlink(missing_ok=True)
    if replaced:
        remove(aside)


def recover(destination: Path) -> None:
    """Finish a replacement that was killed between its renames: put the old folder back, or delete it."""
    aside = _aside(destination)
    if not aside.exists():
        return
    if destination.exists():
        remove(aside)
    else:
        os.rename(aside, destination)


def _aside(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.replaced")


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


class Flusher:
    """Has the disk take a growing file on a second thread, so that little is left for the sync at its end."""

    _EVERY = 1 << 28  # bytes

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._worker = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        self._waiting = 0  # bytes written since

    def __enter__(self) -> Flusher:
        return self

    def __exit__(self, *_: Any) -> None:
        self._worker.shutdown(cancel_futures=True)

    def wrote(self, nbytes: int) -> None:
        """
        Raises:
            OSError: the disk did not take what was written before.
        """
        self._waiting += nbytes
        if self._waiting < self._EVERY or not (self._last is None or self._last.done()):
            return
        if self._last is not None:
            self._last.result()
        self._last, self._waiting = self._worker.submit(os.fsync, self._file.fileno()), 0

    def finish(self) -> None:
        """Until the disk holds all of the file."""
        if self._last is not None:
            self._last.result()
        self._file.flush()
        os.fsync(self._file.fileno())


def sync(path: Path) -> None:
    """Have the disk hold `path` itself: a file's bytes, or a folder's names."""
    if os.name != "posix":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

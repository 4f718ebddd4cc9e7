"""The folder that an operation makes: refused where it would damage something, locked, and renamed into place."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from .json_files import listing
from .paths import expanded, resolved
from .replaceable import LOCK, PROGRESS, check_replaceable

# There are no such locks on Windows.
fcntl: ModuleType | None = importlib.import_module("fcntl") if os.name == "posix" else None


def check_destination(source_folder: str | Path, destination: str | Path, overwrite: bool = False) -> None:
    """Refuse a destination that would damage something, before any work is done.

    Raises:
        ValueError: it is the source, inside it or around it; a file; a folder that exists, without
            `overwrite`; a folder that is not a checkpoint alone, even with it (see `check_replaceable`); one that
            cannot be replaced, such as the current one; or its parent cannot be written.
    """
    check_apart(source_folder, destination)
    check_free(resolved(destination), overwrite, [expanded(source_folder)])


def check_apart(source_folder: str | Path, destination: str | Path) -> None:
    """Refuse a destination that is the source, inside it or around it or its files; see `check_destination`."""
    origin = resolved(source_folder)
    target = resolved(destination)
    if origin == target or (target.exists() and os.path.samefile(origin, target)):
        raise ValueError(f"{destination} is the source itself: choose another destination")
    if origin in target.parents or target in origin.parents:
        inside = "inside" if origin in target.parents else "around"
        raise ValueError(f"{destination} is {inside} the source {source_folder}: choose another destination")
    linked = [path.name for path in origin.iterdir() if path.is_symlink()] if origin.is_dir() else []
    if found := [name for name in linked if target in resolved(origin / name).parents]:
        raise ValueError(
            f"{destination} holds files that the source {source_folder} links to: {listing(found)}; choose another "
            "destination"
        )


def check_free(destination: Path, overwrite: bool, origins: Iterable[Path] = ()) -> None:
    """Refuse a destination that is taken or cannot be written; see `check_destination`.

    Args:
        destination: resolved.
        origins: folders that are read; a file at the destination that lies there too is not lost.
    """
    if destination.is_symlink():
        raise ValueError(f"{destination} is a link that leads in a circle: choose another destination")
    if destination.exists():
        if not destination.is_dir():
            raise ValueError(f"{destination} is a file: choose another destination")
        if not overwrite:
            raise ValueError(
                f"{destination} exists: choose another destination, or overwrite it (--overwrite; in Python, "
                "overwrite=True)"
            )
        _check_place(destination)
        check_replaceable(destination, origins)
    parent = next(path for path in destination.parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{parent} cannot be written: choose another destination than {destination}")


def _check_place(destination: Path) -> None:
    """Refuse to replace a folder that people or systems stand in, whatever it holds."""
    here, home = resolved("."), resolved("~")
    for what, place in (("the current folder", here), ("your home folder", home)):
        if destination == place or destination in place.parents:
            around = "is" if destination == place else "is around"
            raise ValueError(f"{destination} {around} {what}: choose another destination, or a folder in it")
    if os.path.ismount(destination):
        raise ValueError(f"{destination} is a mount point and cannot be replaced: choose a folder in it")


def partial_folder(destination: Path) -> Path:
    """Where the output for `destination` is made: a hidden folder beside it."""
    return destination.with_name(f".{destination.name}.partial")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` and hold its lock, so that two runs never write into it at once.

    Where the system or the file system has no locks, there is none.

    Raises:
        ValueError: another run holds it, or the folder or its lock is a link: none is followed.
    """
    descriptor = _acquire(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _acquire(folder: Path) -> int | None:
    while True:
        refuse_link(folder)
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError as error:
            raise ValueError(f"{folder} is in the way and no folder: move it away") from error
        refuse_link(folder / LOCK)
        if fcntl is None:
            return None
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # published or cleared away since
            continue
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


def refuse_link(path: Path) -> None:
    """
    Raises:
        ValueError: `path`, a name that only Moeba uses, is a link: it would lead the work elsewhere.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link to {os.readlink(path)}, and is not followed: delete the link")


def move_into_place(folder: Path, config: Path, destination: Path) -> None:
    """Make the finished folder the destination; one that is already there is put back if that fails.

    The config comes last: whenever the run is killed, what can be loaded is complete and has passed its proof.

    Args:
        config: the file in `folder` that becomes its config.json.
    """
    for path in (*folder.rglob("*"), folder):
        sync(path)
    aside = _aside(destination)
    replaced = destination.exists()
    if replaced:
        os.rename(destination, aside)
    try:
        os.rename(config, folder / "config.json")
        os.rename(folder, destination)
    except BaseException:
        if replaced:
            os.rename(aside, destination)
        raise
    sync(destination.parent)
    _clean_up(destination)


def _clean_up(destination: Path) -> None:
    """Remove what served the replacement alone; the lock last, as without it another run could begin too early."""
    if (aside := _aside(destination)).exists():
        remove(aside)
    for name in (PROGRESS, LOCK):
        (destination / name).unlink(missing_ok=True)


def recover(destination: Path) -> None:
    """Finish a replacement that was killed between its renames: put the old folder back, or delete it.

    Raises:
        ValueError: there is a folder of that name which no replacement left.
    """
    aside = _aside(destination)
    refuse_link(aside)
    if aside.exists() and not destination.exists():
        os.rename(aside, destination)
    elif (destination / PROGRESS).is_file():  # in place, and not cleaned up, unless that is being done
        with locked(destination):
            _clean_up(destination)
    elif aside.exists():
        raise ValueError(
            f"{aside} is in the way, and no killed run left it beside {destination}: move it away"
        )


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

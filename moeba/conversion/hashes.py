"""SHA-256 of files: on a second thread where it can be, and once for each file as long as it stays as it is."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 22  # bytes hashed at a time: more would not stay in the processor's cache
_SMALL = 1 << 24  # bytes; smaller files are hashed again sooner than their clock is waited for
_TICK_NS = 20_000_000  # file systems stamp changes by a clock that may stand still so long

Identity = tuple[int, int, int, int, int]
_known: dict[Identity, str] = {}
_one_at_a_time = threading.Lock()


class _StoppedError(Exception):
    """The hash is no longer wanted."""


def sha256_of(path: Path, stop: threading.Event | None = None) -> str:
    """SHA-256 (hex) of a file. It is read only if it changed since it was last hashed here.

    Args:
        stop: once set, gives up.
    """
    before = identity_of(path)
    if before not in _known:
        with _one_at_a_time:
            if before in _known:
                return _known[before]
            with path.open("rb") as file:
                found = _hash_rest(file, hashlib.sha256(), stop)
            # A file changed within one tick of the clock would look the same afterwards.
            if before != identity_of(path) or not _is_settled(before):
                return found
            _known[before] = found
    return _known[before]


def known_sha256(identity: Identity) -> str | None:
    """The hash of a file that was as `identity_of` says, if it was hashed here."""
    return _known.get(identity)


def remember(path: Path, sha256: str, always: bool = False) -> None:
    """Take over the hash of a file that was just written here, so that it need not be read again.

    Args:
        always: of a small file too.
    """
    identity = identity_of(path)
    if always or identity[2] >= _SMALL:
        while not _is_settled(identity):
            time.sleep(_TICK_NS / 1e9)
        _known[identity] = sha256


@contextmanager
def hashing(paths: Iterable[Path]) -> Iterator[None]:
    """Hash files on a second thread while the block runs; `sha256_of` then has them, or waits for the next."""
    stop = threading.Event()

    def work() -> None:
        # Whatever is wrong with a file is said when its hash is asked for.
        with suppress(_StoppedError, OSError):
            for path in paths:
                sha256_of(path, stop)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class RunningHash:
    """SHA-256 of a file while it is written, on a second thread.

    Bytes that come in the file's order are hashed as they pass; from the first that do not, the file is read again.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._end = 0  # bytes of the file that were handed over
        self._worker = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> RunningHash:
        return self

    def __exit__(self, *_: Any) -> None:
        self._worker.shutdown(cancel_futures=True)

    def update(self, offset: int, data: bytes | memoryview) -> None:
        """`data` is written at `offset`; it must stay as it is until `wait`."""
        if offset != self._end:
            return
        for start in range(0, len(data), _CHUNK):
            self._pending.append(self._worker.submit(self._digest.update, data[start : start + _CHUNK]))
        self._end += len(data)

    def wait(self, most: int = 0) -> None:
        """Until at most `most` bytes, about, are still to be hashed; until then their memory is not free."""
        while len(self._pending) > most // _CHUNK:
            self._pending.popleft().result()

    def finish(self, file: BinaryIO) -> str:
        """The hash (hex) of all of `file`, which must be open for reading too."""
        self.wait()
        file.flush()
        file.seek(self._end)
        return _hash_rest(file, self._digest, None)


def _hash_rest(file: BinaryIO, digest: Any, stop: threading.Event | None) -> str:
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        if stop is not None and stop.is_set():
            raise _StoppedError
        digest.update(view[:count])
    return str(digest.hexdigest())


def identity_of(path: Path) -> Identity:
    """What changes when a file does: where it lies, its size, and its times; nobody can set the last one back."""
    status = path.stat()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _is_settled(identity: Identity) -> bool:
    return time.time_ns() - max(identity[3:]) > _TICK_NS

"""Writing a checkpoint folder: streaming, resumable, and there all at once or not at all.

- The shards are laid out from names, shapes and dtypes alone, so the same recipes always give the same files.
- Recipes run one at a time and their tensors go straight into the file: the largest recipe bounds the memory.
- Everything happens in a hidden folder beside the destination, which is renamed into place at the very end.
  An interrupted run leaves that folder only, and the next run keeps the shards that were finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .checkpoint import TensorSource
from .destination import Flusher, check_destination, sync
from .hashes import RunningHash, remember, sha256_of
from .inputs import Inputs
from .paths import resolved
from .shards import Recipe, Shard, check_recipes, lay_out, parse_size, put, write_recipe
from .threads import one_thread
from .weight_files import SAFE_INDEX
from .workplace import Workplace

__all__ = ["Progress", "Recipe", "WriteReport", "check_destination", "write_checkpoint", "write_folder"]

Progress = Callable[[int, int, str], None]
_FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}


@dataclass(frozen=True)
class WriteReport:
    """What a run did. `bytes_written` and `seconds` are of this run; reused shards cost neither."""

    shards: int
    reused_shards: int
    tensors: int
    bytes_written: int
    seconds: float


class Part(Protocol):
    """One large file of a folder.

    Attributes:
        file: its name.
        size: in bytes.
        nbytes: of them, what counts as work.
        words: what it is to be; under the same digest and words, it is the same bytes.
    """

    @property
    def file(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def words(self) -> str: ...

    def write(self, path: Path, advance: Callable[[int, str], None]) -> str:
        """Write the file, have the disk hold it, and return its SHA-256; `advance(nbytes, what)` tells of progress."""


def write_checkpoint(
    recipes: Sequence[Recipe],
    source: TensorSource,
    destination: Path,
    *,
    digest: str,
    finish: Callable[[Path], None],
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    inputs: Inputs | None = None,
    origins: Sequence[Path] = (),
) -> WriteReport:
    """Run `recipes` into safetensors shards and publish the folder at `destination`.

    Args:
        recipes: every target tensor exactly once. Their order is the order of the shards.
        source: where the recipes' sources are read.
        digest: stands for the source and the recipes.
        finish: called with a folder that has all weights in it, to add config.json, tokenizer, ….
        max_shard_size: bytes of tensor data, or a text such as "5GB" (10^9) or "5GiB" (2^30). A larger recipe
            has a shard of its own.
        metadata: more text for the header of each shard, beside `"format": "pt"`.
        destination, overwrite, progress, inputs, origins: see `write_folder`, and for what is raised.

    Raises:
        ValueError: a computed tensor holds NaN or Inf.
        AssertionError: a recipe breaks its promise (names, shapes, dtypes). As after any other error, nothing
            appears at the destination.
    """
    check_recipes(recipes, source)
    shards = lay_out(recipes, parse_size(max_shard_size), {"format": "pt", **(metadata or {})})

    def finish_weights(folder: Path) -> None:
        if len(shards) > 1:
            _write_index(folder, shards)
        finish(folder)

    return write_folder(
        [_ShardPart(shard, source) for shard in shards],
        destination,
        digest=digest,
        finish=finish_weights,
        overwrite=overwrite,
        progress=progress,
        inputs=inputs,
        origins=origins,
        tensors=sum(len(recipe.targets) for recipe in recipes),
    )


def write_folder(
    parts: Sequence[Part],
    destination: Path,
    *,
    digest: str,
    finish: Callable[[Path], None],
    overwrite: bool = False,
    progress: Progress | None = None,
    inputs: Inputs | None = None,
    origins: Sequence[Path] = (),
    disposable: bool = False,
    tensors: int = 0,
) -> WriteReport:
    """Write `parts` and what `finish` adds, and publish the folder at `destination`.

    Args:
        destination: the folder to appear. Its parents are created.
        digest: stands for all that decides the bytes; an unfinished run is continued only under the same one.
        finish: called with a folder that has all parts in it, to add config.json and the rest.
        overwrite: replace a checkpoint at the destination, and discard an unfinished one of another run.
        progress: called as `progress(done_bytes, total_bytes, what)` after each piece of work or reused part.
        inputs: the files that are read; if one changed, nothing is published, and nothing continued.
        origins: the folders that are read; what lies there too may be overwritten.
        disposable: see `Workplace`.
        tensors: for the report.

    Raises:
        ValueError: the destination is taken, another run is at work on it, its unfinished output is another
            run's, or a file changed while it was read.
        OSError: the disk is full or may not be written; what was finished is kept for the next run.
    """
    started = time.perf_counter()
    destination = resolved(destination)
    place = Workplace(destination, inputs or Inputs(()), list(origins), overwrite, disposable)
    run = _Run(place, parts, progress or (lambda done, total, what: None))
    with _explained(run), place.opened(digest, {part.file: part.words for part in parts}):
        with one_thread():  # the hashes need the other ones
            run.write()
        place.publish(finish)
    return WriteReport(
        shards=len(parts),
        reused_shards=run.reused,
        tensors=tensors,
        bytes_written=run.written,
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Run:
    """The parts of one folder, written or found finished."""

    place: Workplace
    parts: Sequence[Part]
    progress: Progress
    reused: int = 0  # parts
    written: int = 0  # bytes, headers included
    done: int = 0  # bytes that count as work, reused ones included

    @property
    def total(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def write(self) -> None:
        for part in self.parts:
            path = self.place.folder / part.file
            if _is_intact(path, part.size, self.place.finished.get(part.file)):
                self.reused += 1
                self._advance(part.nbytes, f"{part.file} (kept)")
                continue
            unfinished = path.with_name(f"{path.name}.tmp")
            sha256 = part.write(unfinished, self._advance)
            assert unfinished.stat().st_size == part.size, f"{unfinished} does not have {part.size} bytes"
            os.replace(unfinished, path)
            sync(self.place.folder)
            remember(path, sha256)
            self.written += part.size
            self.place.keep(part.file, sha256)

    def _advance(self, nbytes: int, what: str) -> None:
        self.done += nbytes
        self.progress(self.done, self.total, what)


@dataclass(frozen=True)
class _ShardPart:
    shard: Shard
    source: TensorSource

    @property
    def file(self) -> str:
        return self.shard.file

    @property
    def size(self) -> int:
        return self.shard.size

    @property
    def nbytes(self) -> int:
        return self.shard.nbytes

    @property
    def words(self) -> str:
        return hashlib.sha256(self.shard.header).hexdigest()

    def write(self, path: Path, advance: Callable[[int, str], None]) -> str:
        with path.open("w+b") as file, Flusher(file) as flusher, RunningHash() as running:
            running.update(0, self.shard.header)
            put(file, 0, self.shard.header)
            for recipe in self.shard.recipes:
                write_recipe(file, self.shard, recipe, self.source, running)
                flusher.wrote(recipe.nbytes)
                advance(recipe.nbytes, recipe.description or recipe.targets[0].name)
            sha256 = running.finish(file)
            flusher.finish()
        return sha256


def _is_intact(path: Path, size: int, sha256: str | None) -> bool:
    """Whether `path` is the finished file, and no link to one."""
    if sha256 is None or path.is_symlink() or not path.is_file() or path.stat().st_size != size:
        return False
    return sha256_of(path) == sha256


def _write_index(folder: Path, shards: Sequence[Shard]) -> None:
    weight_map = {info.name: shard.file for shard in shards for info in shard.tensors}
    total = sum(shard.nbytes for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / SAFE_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _explained(run: _Run) -> Iterator[None]:
    """Say of a full or forbidden disk what it stopped and how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_OR_FORBIDDEN:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise OSError(
            error.errno,
            f"writing {run.place.destination} stopped: {error.strerror}{where}; {run.total - run.done} bytes of "
            "tensors were still to be written. "
            f"Finished shards are kept in {run.place.folder}: run again to continue",
        ) from error

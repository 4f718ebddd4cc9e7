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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint import TensorSource
from .destination import (
    LOCK,
    Flusher,
    check_destination,
    check_free,
    locked,
    move_into_place,
    recover,
    remove,
    sync,
)
from .hashes import RunningHash, remember
from .json_files import read_json
from .shards import Recipe, Shard, check_recipes, is_intact, lay_out, parse_size, put, write_recipe
from .threads import one_thread
from .weight_files import SAFE_INDEX

__all__ = ["Progress", "Recipe", "WriteReport", "check_destination", "write_checkpoint"]

Progress = Callable[[int, int, str], None]
_VERSION = 1  # of the file below
_PROGRESS = ".progress.json"
_FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}


@dataclass(frozen=True)
class WriteReport:
    """What a run did. `bytes_written` and `seconds` are of this run; reused shards cost neither."""

    shards: int
    reused_shards: int
    tensors: int
    bytes_written: int
    seconds: float


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
) -> WriteReport:
    """Run `recipes` into safetensors shards and publish the folder at `destination`.

    Args:
        recipes: every target tensor exactly once. Their order is the order of the shards.
        source: where the recipes' sources are read.
        destination: the folder to appear. Its parents are created.
        digest: stands for the source and the recipes; an unfinished run is continued only under the same one.
        finish: called with the working folder once all weights are in it, to add config.json, tokenizer, ….
        max_shard_size: bytes of tensor data, or a text such as "5GB" (10^9) or "5GiB" (2^30). A larger recipe
            has a shard of its own.
        metadata: more text for the header of each shard, beside `"format": "pt"`.
        overwrite: replace a checkpoint at the destination, and discard an unfinished one of another run.
        progress: called as `progress(done_bytes, total_bytes, what)` after each recipe or reused shard.

    Raises:
        ValueError: the destination is taken, another run is at work on it, its unfinished output is another
            run's, or a computed tensor holds NaN or Inf.
        AssertionError: a recipe breaks its promise (names, shapes, dtypes). As after any other error, nothing
            appears at the destination.
        OSError: the disk is full or may not be written; what was finished is kept for the next run.
    """
    started = time.perf_counter()
    destination = Path(destination).expanduser().resolve()
    check_free(destination, overwrite)
    check_recipes(recipes, source)
    run = _Run(
        folder=destination.with_name(f".{destination.name}.partial"),
        shards=lay_out(recipes, parse_size(max_shard_size), {"format": "pt", **(metadata or {})}),
        source=source,
        progress=progress or (lambda done, total, what: None),
    )
    with _explained(run, destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with locked(run.folder):
            recover(destination)
            check_free(destination, overwrite)
            run.resume(digest, discard=overwrite)
            with one_thread():  # the hashes need the other ones
                run.write_shards()
            run.publish(finish, destination, overwrite)
    return WriteReport(
        shards=len(run.shards),
        reused_shards=run.reused,
        tensors=sum(len(recipe.targets) for recipe in recipes),
        bytes_written=run.written,
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Run:
    """The work in one hidden folder, from what an earlier run left there to the last file."""

    folder: Path
    shards: list[Shard]
    source: TensorSource
    progress: Progress
    reused: int = 0  # shards
    written: int = 0  # bytes, headers included
    done: int = 0  # bytes of tensors, reused ones included
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    def resume(self, digest: str, discard: bool) -> None:
        """Take over the finished shards of an earlier run of the same work; remove whatever else is there."""
        layout = {shard.file: hashlib.sha256(shard.header).hexdigest() for shard in self.shards}
        fresh = {"version": _VERSION, "digest": digest, "layout": layout, "finished": {}}
        try:
            self.state = self._left_over(fresh)
        except ValueError:
            if not discard:
                raise
            self.state = fresh
        self._clear()
        self._save_state()

    def write_shards(self) -> None:
        for shard in self.shards:
            if is_intact(self.folder / shard.file, shard, self.state["finished"].get(shard.file)):
                self.reused += 1
                self._advance(shard.nbytes, f"{shard.file} (kept)")
            else:
                self._write_shard(shard)

    def publish(self, finish: Callable[[Path], None], destination: Path, overwrite: bool) -> None:
        """Add the index and what `finish` writes, and move. If that fails, only finished shards stay here."""
        try:
            self._write_index()
            finish(self.folder)
            check_free(destination, overwrite)  # again: it may have appeared in the hours since
            move_into_place(self.folder, destination, _PROGRESS)
        except BaseException:
            if self.folder.exists():
                self._clear()
                self._save_state()
            raise

    def _left_over(self, fresh: dict[str, Any]) -> dict[str, Any]:
        names = [path.name for path in self.folder.iterdir() if path.name != LOCK and path.suffix != ".tmp"]
        if not names:
            return fresh
        remedy = f"delete {self.folder}, or overwrite it"
        if _PROGRESS not in names:
            raise ValueError(f"{self.folder} is in the way and has no {_PROGRESS} to continue from: {remedy}")
        state = read_json(self.folder / _PROGRESS)
        for key, what in (
            ("version", "was left by another version of Moeba"),
            ("digest", "is the unfinished output of another run: its source or its recipe differs"),
            ("layout", "is the unfinished output of a run with other shards: their size or metadata differs"),
        ):
            if state.get(key) != fresh[key]:
                raise ValueError(f"{self.folder} {what}; {remedy}")
        return state

    def _write_shard(self, shard: Shard) -> None:
        path = self.folder / shard.file
        unfinished = path.with_name(f"{path.name}.tmp")
        with unfinished.open("w+b") as file, Flusher(file) as flusher, RunningHash() as running:
            running.update(0, shard.header)
            put(file, 0, shard.header)
            for recipe in shard.recipes:
                write_recipe(file, shard, recipe, self.source, running)
                flusher.wrote(recipe.nbytes)
                self._advance(recipe.nbytes, recipe.description or recipe.targets[0].name)
            sha256 = running.finish(file)
            flusher.finish()
        assert unfinished.stat().st_size == shard.size, f"{unfinished} does not have {shard.size} bytes"
        os.replace(unfinished, path)
        sync(self.folder)
        remember(path, sha256)
        self.written += shard.size
        self.state["finished"][shard.file] = sha256
        self._save_state()

    def _write_index(self) -> None:
        if len(self.shards) == 1:
            return
        weight_map = {info.name: shard.file for shard in self.shards for info in shard.tensors}
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / SAFE_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _advance(self, nbytes: int, what: str) -> None:
        self.done += nbytes
        self.progress(self.done, self.total, what)

    def _save_state(self) -> None:
        unfinished = self.folder / f"{_PROGRESS}.tmp"
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(self.state, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self.folder / _PROGRESS)

    def _clear(self) -> None:
        """Remove all but the finished shards: a folder with a config.json could be loaded by mistake."""
        keep = {LOCK, _PROGRESS, *self.state["finished"]}
        for path in self.folder.iterdir():
            if path.name not in keep:
                remove(path)


@contextmanager
def _explained(run: _Run, destination: Path) -> Iterator[None]:
    """Say of a full or forbidden disk what it stopped and how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_OR_FORBIDDEN:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise OSError(
            error.errno,
            f"writing {destination} stopped: {error.strerror}{where}; {run.total - run.done} bytes of "
            "tensors were still to be written. "
            f"Finished shards are kept in {run.folder}: run again to continue",
        ) from error

"""Writing a checkpoint folder: streaming, resumable, and there all at once or not at all.

- The shards are laid out from names, shapes and dtypes alone, so the same recipes always give the same files.
- Recipes run one at a time and their tensors go straight into the file: the largest recipe bounds the memory.
- Everything happens in a hidden folder beside the destination, which is renamed into place at the very end.
  An interrupted run leaves that folder only, and the next run keeps the shards that were finished.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import torch

from .checkpoint import (
    DTYPES,
    SAFE_FILE,
    SAFE_INDEX,
    TensorInfo,
    TensorSource,
    count_nonfinite,
    listing,
    read_json,
)

# There are no such locks on Windows.
fcntl: ModuleType | None = importlib.import_module("fcntl") if os.name == "posix" else None

Progress = Callable[[int, int, str], None]

_VERSION = 1  # of progress.json
_PROGRESS = "progress.json"
_LOCK = ".lock"
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_UNITS = {
    **{"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40},
}
_FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}


@dataclass(frozen=True)
class Recipe:
    """Target tensors and how they are computed from source tensors.

    Attributes:
        targets: produced together, in this order; they are written to the same shard.
        sources: names in the `TensorSource`, handed to `compute` in this order.
        compute: from the source tensors to the target tensors, on the CPU; they need not be contiguous.
        description: a few words for progress reports; default the name of the first target.
    """

    targets: tuple[TensorInfo, ...]
    sources: tuple[str, ...]
    compute: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
    description: str = ""

    @property
    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)


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
    _check_free(destination, overwrite)
    _check_recipes(recipes, source)
    run = _Run(
        folder=destination.with_name(f".{destination.name}.partial"),
        shards=_lay_out(recipes, _parse_size(max_shard_size), {"format": "pt", **(metadata or {})}),
        source=source,
        progress=progress or (lambda done, total, what: None),
    )
    with _explained(run, destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _locked(run.folder):
            _recover(destination)
            _check_free(destination, overwrite)
            run.resume(digest, discard=overwrite)
            run.write_shards()
            run.publish(finish, destination, overwrite)
    return WriteReport(
        shards=len(run.shards),
        reused_shards=run.reused,
        tensors=sum(len(recipe.targets) for recipe in recipes),
        bytes_written=run.written,
        seconds=time.perf_counter() - started,
    )


def check_destination(source_folder: str | Path, destination: str | Path, overwrite: bool = False) -> None:
    """Refuse a destination that would damage something, before any work is done.

    Raises:
        ValueError: it is the source, inside it or around it; a file; a folder that exists, without
            `overwrite`; a folder that is no checkpoint, even with it; or its parent cannot be written.
    """
    origin = Path(source_folder).expanduser().resolve()
    target = Path(destination).expanduser().resolve()
    if origin == target or (target.exists() and os.path.samefile(origin, target)):
        raise ValueError(f"{destination} is the source itself: choose another destination")
    if origin in target.parents or target in origin.parents:
        inside = "inside" if origin in target.parents else "around"
        raise ValueError(f"{destination} is {inside} the source {source_folder}: choose another destination")
    _check_free(target, overwrite)


@dataclass(frozen=True)
class _Shard:
    """One file, known byte for byte but for its tensors."""

    file: str
    recipes: tuple[Recipe, ...]  # in the order they run
    tensors: tuple[TensorInfo, ...]  # in the order of their bytes
    header: bytes  # with the length in front
    start: Mapping[str, int]  # of each tensor, in bytes from the beginning of the file
    size: int  # bytes of the file

    @property
    def nbytes(self) -> int:
        return self.size - len(self.header)


@dataclass
class _Run:
    """The work in one hidden folder, from what an earlier run left there to the last file."""

    folder: Path
    shards: list[_Shard]
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
            if _is_intact(self.folder / shard.file, shard, self.state["finished"].get(shard.file)):
                self.reused += 1
                self._advance(shard.nbytes, f"{shard.file} (kept)")
            else:
                self._write_shard(shard)

    def publish(self, finish: Callable[[Path], None], destination: Path, overwrite: bool) -> None:
        """Add the index and what `finish` writes, and move. If that fails, only finished shards stay here."""
        try:
            self._write_index()
            finish(self.folder)
            _check_free(destination, overwrite)  # again: it may have appeared in the hours since
            _move_into_place(self.folder, destination)
        except BaseException:
            if self.folder.exists():
                self._clear()
                self._save_state()
            raise

    def _left_over(self, fresh: dict[str, Any]) -> dict[str, Any]:
        names = [path.name for path in self.folder.iterdir() if path.name != _LOCK and path.suffix != ".tmp"]
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

    def _write_shard(self, shard: _Shard) -> None:
        path = self.folder / shard.file
        unfinished = path.with_name(f"{path.name}.tmp")
        sums: dict[str, bytes] = {}
        with unfinished.open("wb") as file:
            _put(file, 0, shard.header)
            for recipe in shard.recipes:
                sums |= _write_recipe(file, shard, recipe, self.source)
                self._advance(recipe.nbytes, recipe.description or recipe.targets[0].name)
            file.flush()
            os.fsync(file.fileno())
        assert unfinished.stat().st_size == shard.size, f"{unfinished} does not have {shard.size} bytes"
        os.replace(unfinished, path)
        _sync(self.folder)
        self.written += shard.size
        self.state["finished"][shard.file] = _combine(shard, sums)
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
        keep = {_LOCK, _PROGRESS, *self.state["finished"]}
        for path in self.folder.iterdir():
            if path.name not in keep:
                _remove(path)


def _check_recipes(recipes: Sequence[Recipe], source: TensorSource) -> None:
    """A plan is complete and consistent by the time it is run; anything else is a bug of the plan."""
    names = Counter(target.name for recipe in recipes for target in recipe.targets)
    problems = [f"{name} is produced {count} times" for name, count in names.items() if count > 1]
    problems += [
        f"{name} is not in the source" for r in recipes for name in r.sources if name not in source.tensors
    ]
    problems += [f"{t.name} has dtype {t.dtype}" for r in recipes for t in r.targets if t.dtype not in _CODES]
    if problems or not names or not all(recipe.targets for recipe in recipes):
        raise AssertionError(
            f"these recipes cannot be written: {listing(problems) or 'there is nothing to write'}"
        )


def _check_free(destination: Path, overwrite: bool) -> None:
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


def _parse_size(size: int | str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(\w*)\s*", str(size).upper())
    if not match or match[2] not in _UNITS or (nbytes := int(float(match[1]) * _UNITS[match[2]])) < 1:
        raise ValueError(f'max_shard_size is {size!r}: give bytes, or a text such as "5GB" or "500MB"')
    return nbytes


def _lay_out(recipes: Sequence[Recipe], limit: int, metadata: Mapping[str, str]) -> list[_Shard]:
    """Fill shard after shard in the order of the recipes, up to `limit` bytes of tensors each."""
    groups: list[list[Recipe]] = [[]]
    room = limit
    for recipe in recipes:
        if groups[-1] and recipe.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(recipe)
        room -= recipe.nbytes
    if len(groups) == 1:
        return [_lay_out_shard(SAFE_FILE, groups[0], metadata)]
    stem, suffix = SAFE_FILE.split(".")
    return [
        _lay_out_shard(f"{stem}-{number:05d}-of-{len(groups):05d}.{suffix}", group, metadata)
        for number, group in enumerate(groups, start=1)
    ]


def _lay_out_shard(file: str, recipes: Sequence[Recipe], metadata: Mapping[str, str]) -> _Shard:
    # The format allows no gaps: only wide dtypes before narrow ones align every tensor to its own width.
    tensors = [target for recipe in recipes for target in recipe.targets]
    tensors.sort(key=lambda info: -info.dtype.itemsize)
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = {}
    end = 0
    for info in tensors:
        begin[info.name], end = end, end + info.nbytes
        entries[info.name] = {
            "dtype": _CODES[info.dtype],
            "shape": info.shape,
            "data_offsets": (begin[info.name], end),
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return _Shard(
        file=file,
        recipes=tuple(sorted(recipes, key=lambda recipe: -max(t.dtype.itemsize for t in recipe.targets))),
        tensors=tuple(tensors),
        header=header,
        start={name: len(header) + offset for name, offset in begin.items()},
        size=len(header) + end,
    )


def _write_recipe(file: BinaryIO, shard: _Shard, recipe: Recipe, source: TensorSource) -> dict[str, bytes]:
    """Compute a recipe and put its tensors in their places; the SHA-256 of each. All are freed on return."""
    outputs = recipe.compute([source.read(name) for name in recipe.sources])
    what = recipe.description or f"the recipe of {recipe.targets[0].name}"
    if len(outputs) != len(recipe.targets):
        raise AssertionError(f"{what} computed {len(outputs)} tensors, expected {len(recipe.targets)}")
    sums = {}
    for info, tensor in zip(recipe.targets, outputs, strict=True):
        data = _checked_bytes(info, tensor, what)
        _put(file, shard.start[info.name], data)
        sums[info.name] = hashlib.sha256(data).digest()
    return sums


def _checked_bytes(info: TensorInfo, tensor: torch.Tensor, what: str) -> memoryview:
    if (tuple(tensor.shape), tensor.dtype, tensor.device.type) != (info.shape, info.dtype, "cpu"):
        raise AssertionError(
            f"{what} broke its promise\n"
            f"  tensor:   {info.name}\n"
            f"  expected: {list(info.shape)} {info.dtype} on cpu\n"
            f"  got:      {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
        )
    if bad := count_nonfinite(tensor):
        raise ValueError(
            f"{info.name} ({what}) came out with {bad} NaN or Inf values of {tensor.numel()}; "
            f"the sources are finite, so a value is out of range for {info.dtype}"
        )
    # Flat first: a tensor without dimensions cannot be viewed as bytes.
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _put(file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
    if file.tell() != offset:
        file.seek(offset)
    file.write(data)


def _combine(shard: _Shard, sums: Mapping[str, bytes]) -> str:
    """One checksum of a shard from those of its tensors, whatever order they were written in."""
    digest = hashlib.sha256(shard.header)
    for info in shard.tensors:
        digest.update(sums[info.name])
    return digest.hexdigest()


def _is_intact(path: Path, shard: _Shard, checksum: str | None) -> bool:
    """Whether `path` is the finished shard: its size, its header, and its tensors by checksum."""
    if checksum is None or not path.is_file() or path.stat().st_size != shard.size:
        return False
    sums = {}
    with path.open("rb") as file:
        if file.read(len(shard.header)) != shard.header:
            return False
        for info in shard.tensors:
            sums[info.name] = _hash_next(file, info.nbytes)
    return _combine(shard, sums) == checksum


def _hash_next(file: BinaryIO, nbytes: int) -> bytes:
    digest = hashlib.sha256()
    while nbytes and (piece := file.read(min(nbytes, 1 << 24))):
        digest.update(piece)
        nbytes -= len(piece)
    return digest.digest()


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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
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
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
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
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / _LOCK)):
                return descriptor
        os.close(descriptor)


def _move_into_place(folder: Path, destination: Path) -> None:
    """Make the finished folder the destination; one that is already there is put back if that fails."""
    (folder / _PROGRESS).unlink()
    for path in (*folder.iterdir(), folder):
        _sync(path)
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
    _sync(destination.parent)
    # Only now: without it, another run could take the folder over before the rename.
    (destination / _LOCK).unlink(missing_ok=True)
    if replaced:
        _remove(aside)


def _recover(destination: Path) -> None:
    """Finish a replacement that was killed between its renames: put the old folder back, or delete it."""
    aside = _aside(destination)
    if not aside.exists():
        return
    if destination.exists():
        _remove(aside)
    else:
        os.rename(aside, destination)


def _aside(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.replaced")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync(path: Path) -> None:
    """Have the disk hold `path` itself: a file's bytes, or a folder's names."""
    if os.name != "posix":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Shards: safetensors files known byte for byte, but for their tensors, from names, shapes and dtypes alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from .alignment import ALIGNMENT
from .checkpoint import count_nonfinite
from .hashes import RunningHash
from .json_files import listing
from .pieces import Output, TensorSource, Unread, as_bytes, pieces, read_pieces, whole
from .weight_files import DTYPES, SAFE_FILE, TensorInfo

__all__ = [
    "Output",
    "Recipe",
    "Shard",
    "check_recipes",
    "lay_out",
    "parse_size",
    "pieces",
    "put",
    "whole",
]

CODES = {dtype: code for code, dtype in DTYPES.items()}
_SLICE = 1 << 24  # bytes written at a time, while as many are hashed
_MOST_BYTES = 2**63 - 1
_UNITS = {
    **{"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40},
}


@dataclass(frozen=True)
class Recipe:
    """Target tensors and how they are computed from source tensors.

    Attributes:
        targets: produced together, in this order; they are written to the same shard.
        sources: names in the `TensorSource`, handed to `compute` in this order.
        compute: from the source tensors to the target tensors, on the CPU; they need not be contiguous. The builtin
            `list` copies them as they are.
        description: a few words for progress reports; default the name of the first target.
        streams: `compute` gets the sources one at a time, each read when it is asked for and then forgotten.
    """

    targets: tuple[TensorInfo, ...]
    sources: tuple[str, ...]
    compute: Callable[[Sequence[torch.Tensor]], Sequence[Output]]
    description: str = ""
    streams: bool = False

    def run(self, source: TensorSource) -> Sequence[Output]:
        """The targets, from the sources that `source` holds; what is copied comes in pieces."""
        if self.compute is list:
            return [read_pieces(source, name) for name in self.sources]
        if self.streams:
            return self.compute(Unread(source, self.sources))
        return self.compute([source.read(name) for name in self.sources])

    def copied_from(self, target: str) -> str | None:
        """The source tensor whose bytes a target is; None if it is computed."""
        if self.compute is not list:
            return None
        return self.sources[[info.name for info in self.targets].index(target)]

    @property
    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)


@dataclass(frozen=True)
class Shard:
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


def check_recipes(recipes: Sequence[Recipe], source: TensorSource) -> None:
    """A plan is complete and consistent by the time it is run; anything else is a bug of the plan."""
    names = Counter(target.name for recipe in recipes for target in recipe.targets)
    problems = [f"{name} is produced {count} times" for name, count in names.items() if count > 1]
    problems += [
        f"{name} is not in the source" for r in recipes for name in r.sources if name not in source.tensors
    ]
    problems += [f"{t.name} has dtype {t.dtype}" for r in recipes for t in r.targets if t.dtype not in CODES]
    if problems or not names or not all(recipe.targets for recipe in recipes):
        raise AssertionError(
            f"these recipes cannot be written: {listing(problems) or 'there is nothing to write'}"
        )


def parse_size(size: int | str) -> int:
    """Bytes, from a number or a text such as "5GB" (10^9) or "5GiB" (2^30)."""
    if isinstance(size, int) and size > _MOST_BYTES:
        raise ValueError(f"max_shard_size is over {_MOST_BYTES} bytes: no file is as large")
    match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*(\w*)\s*", str(size).upper())
    nbytes = float(match[1]) * _UNITS.get(match[2], 0) if match else 0
    if not 1 <= nbytes <= _MOST_BYTES:
        raise ValueError(
            f'max_shard_size is {str(size)[:40]!r}: give bytes, or a text such as "5GB" or "500MB"'
        )
    return int(nbytes)


def lay_out(recipes: Sequence[Recipe], limit: int, metadata: Mapping[str, str]) -> list[Shard]:
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


def _lay_out_shard(file: str, recipes: Sequence[Recipe], metadata: Mapping[str, str]) -> Shard:
    tensors = sorted((target for recipe in recipes for target in recipe.targets), key=_rank)
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = {}
    end = 0
    for info in tensors:
        begin[info.name], end = end, end + info.nbytes
        entries[info.name] = {
            "dtype": CODES[info.dtype],
            "shape": info.shape,
            "data_offsets": (begin[info.name], end),
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return Shard(
        file=file,
        recipes=tuple(sorted(recipes, key=lambda recipe: min(map(_rank, recipe.targets)))),
        tensors=tuple(tensors),
        header=header,
        start={name: len(header) + offset for name, offset in begin.items()},
        size=len(header) + end,
    )


def _rank(info: TensorInfo) -> tuple[bool, int]:
    """Which tensors come first in a file: the format allows no gaps, and whoever maps it computes where they lie.

    Whole lines of memory align all that follows them; then only wide dtypes before narrow ones align each to its width.
    """
    return info.nbytes % ALIGNMENT > 0, -info.dtype.itemsize


def write_recipe(
    file: BinaryIO, shard: Shard, recipe: Recipe, source: TensorSource, running: RunningHash
) -> None:
    """Compute a recipe, put its tensors in their places, and hash them. All are freed on return."""
    outputs = recipe.run(source)
    what = recipe.description or f"the recipe of {recipe.targets[0].name}"
    if len(outputs) != len(recipe.targets):
        raise AssertionError(f"{what} computed {len(outputs)} tensors, expected {len(recipe.targets)}")
    for info, output in zip(recipe.targets, outputs, strict=True):
        offset = shard.start[info.name]
        for data in _checked_bytes(info, output, what):
            for begin in range(0, len(data), _SLICE):
                part = data[begin : begin + _SLICE]
                running.update(offset, part)
                put(file, offset, part)
                offset += len(part)
            # Of all that is hashed late, no more than a slice is kept for it.
            running.wait(_SLICE)
    running.wait()


def _checked_bytes(info: TensorInfo, output: Output, what: str) -> Iterator[memoryview]:
    """The bytes of an output, piece by piece, as long as it is what the recipe promised."""
    rows = 0
    for tensor in pieces(output):
        expected, found = info.shape, tuple(tensor.shape)
        fits = found == expected or (found[1:] == expected[1:] and rows + found[0] <= expected[0])
        if not fits or (tensor.dtype, tensor.device.type) != (info.dtype, "cpu"):
            raise _broken(info, what, f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}")
        if bad := count_nonfinite(tensor):
            raise ValueError(
                f"{info.name} ({what}) came out with {bad} NaN or Inf values of {tensor.numel()}; "
                f"the sources are finite, so a value is out of range for {info.dtype}"
            )
        rows += found[0] if found else 0
        yield as_bytes(tensor).numpy().data
    if info.shape and rows != info.shape[0]:
        raise _broken(info, what, f"{rows} rows in all")


def _broken(info: TensorInfo, what: str, got: str) -> AssertionError:
    return AssertionError(
        f"{what} broke its promise\n"
        f"  tensor:   {info.name}\n"
        f"  expected: {list(info.shape)} {info.dtype} on cpu\n"
        f"  got:      {got}"
    )


def put(file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
    """Write `data` at `offset`."""
    if file.tell() != offset:
        file.seek(offset)
    file.write(data)

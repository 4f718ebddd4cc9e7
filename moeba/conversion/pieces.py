"""Tensors in pieces along their first dimension, of which one at a time needs to be in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch

from .weight_files import TensorInfo

# A tensor, or its pieces.
Output: TypeAlias = torch.Tensor | Iterable[torch.Tensor]


class TensorSource(Protocol):
    """Named tensors that are known in advance and read one at a time. A source may also have `pieces(name)`."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> torch.Tensor: ...


class Unread(Sequence[torch.Tensor]):
    """Tensors of a source, each of which is read whenever it is asked for."""

    def __init__(self, source: TensorSource, names: Sequence[str]) -> None:
        self._source, self._names = source, names

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Unread(self._source, self._names[index])
        return self._source.read(self._names[index])

    def __len__(self) -> int:
        return len(self._names)

    def pieces(self, index: int) -> Iterator[torch.Tensor]:
        return read_pieces(self._source, self._names[index])


def read_pieces(source: TensorSource, name: str) -> Iterator[torch.Tensor]:
    """A tensor of a source piece by piece, if the source reads it so; else whole."""
    in_pieces = getattr(source, "pieces", None)
    if in_pieces is None:
        yield source.read(name)
    else:
        yield from in_pieces(name)


def pieces(output: Output) -> Iterator[torch.Tensor]:
    """The tensor in pieces; a view that repeats itself is never made whole."""
    if not isinstance(output, torch.Tensor):
        yield from output
    elif output.is_contiguous() or output.dim() < 2:
        yield output
    else:
        yield from output.split(1)


def rows(tensors: Sequence[torch.Tensor], index: int) -> Iterator[torch.Tensor]:
    """The tensor at `index` row by row, `[1, ...]` each; of `Unread` ones, what is read is dropped again."""
    found = tensors.pieces(index) if isinstance(tensors, Unread) else (tensors[index],)
    for piece in found:
        yield from piece.split(1)


def whole(output: Output, info: TensorInfo) -> torch.Tensor:
    """The tensor that an output stands for; what came in pieces shares no memory with them."""
    if isinstance(output, torch.Tensor):
        return output
    tensor, row = torch.empty(info.shape, dtype=info.dtype), 0
    for piece in output:
        tensor[row : row + len(piece)] = piece
        row += len(piece)
    assert row == len(tensor), f"{info.name}: {row} rows of {len(tensor)}"
    return tensor


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, `[nbytes]`; a copy only where it is not contiguous."""
    # Flat first: a tensor without dimensions cannot be viewed as bytes.
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same_bytes(first: Iterable[torch.Tensor], second: Iterable[torch.Tensor]) -> bool:
    """Whether two tensors are the same bytes, however each is cut into pieces."""
    mine, theirs = map(as_bytes, first), map(as_bytes, second)
    a = b = torch.empty(0, dtype=torch.uint8)
    while True:
        a, b = _next(a, mine), _next(b, theirs)
        common = min(len(a), len(b))
        if common == 0:
            return len(a) == len(b)
        if not _equal(a[:common], b[:common]):
            return False
        a, b = a[common:], b[common:]


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    # Eight bytes at a time is several times as fast.
    if not any(bound % 8 for tensor in (a, b) for bound in (tensor.storage_offset(), len(tensor))):
        a, b = a.view(torch.int64), b.view(torch.int64)
    return torch.equal(a, b)


def _next(rest: torch.Tensor, following: Iterator[torch.Tensor]) -> torch.Tensor:
    """What is left of a piece, or the next one that is not empty; empty at the end."""
    while len(rest) == 0 and (piece := next(following, None)) is not None:
        rest = piece
    return rest

"""Recipes of a row that hold little in memory: what is kept is copied as bytes, and experts pass one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from ..configuration import MoebaConfig
from .pieces import rows
from .rows import FuseGateUp, Row, StackExperts, SwapLast, UnpairGateUp
from .shards import Recipe

# What these do to one row of our tensor, an expert, no other row has a part in.
_ROW_BY_ROW = (StackExperts, FuseGateUp, SwapLast, UnpairGateUp)


def stream_to_ours(row: Row, config: MoebaConfig, recipe: Recipe) -> Recipe:
    """The same recipe, of a row to our side, with as little as possible in memory."""
    if not row.operations:
        return replace(recipe, compute=list)
    return replace(recipe, compute=partial(_to_ours, row, config), streams=True) if _by_row(row) else recipe


def stream_to_theirs(row: Row, config: MoebaConfig, recipe: Recipe) -> Recipe:
    """The same recipe, of a row to their side; the targets that it enumerates stand expert by expert."""
    if not row.operations:
        return replace(recipe, compute=list)
    if not _by_row(row):
        return recipe
    targets = recipe.targets
    if _enumerates(row):
        count = len(targets) // len(row.theirs)
        targets = tuple(target for expert in range(count) for target in targets[expert::count])
    return replace(
        recipe, targets=targets, compute=partial(_to_theirs, row, config, len(targets)), streams=True
    )


def _by_row(row: Row) -> bool:
    return len(row.ours) == 1 and all(isinstance(operation, _ROW_BY_ROW) for operation in row.operations)


def _enumerates(row: Row) -> bool:
    return isinstance(row.operations[0], StackExperts)


def _to_ours(row: Row, config: MoebaConfig, tensors: Sequence[torch.Tensor]) -> list[Iterator[torch.Tensor]]:
    def experts() -> Iterator[list[torch.Tensor]]:
        if _enumerates(row):
            count = len(tensors) // len(row.theirs)
            for expert in range(count):
                yield [tensors[pattern * count + expert] for pattern in range(len(row.theirs))]
        else:
            yield from map(list, zip(*(rows(tensors, i) for i in range(len(tensors))), strict=True))

    return [(row.to_ours(own, config)[0] for own in experts())]


def _to_theirs(
    row: Row, config: MoebaConfig, count: int, tensors: Sequence[torch.Tensor]
) -> list[Iterator[torch.Tensor]]:
    found = (tensor for expert in rows(tensors, 0) for tensor in row.to_theirs([expert], config))
    if not _enumerates(row):
        return [found]

    def following() -> Iterator[torch.Tensor]:
        # The targets are written in their order, so each is the next one found.
        yield next(found)

    return [following() for _ in range(count)]

"""Embeddings and heads of a merge whose models differ in tokens: each row from the models that know its token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ...conversion.plan import EMBEDDING, HEAD
from ...conversion.shards import Recipe
from ...conversion.weight_files import TensorInfo
from .vocabulary import Vocabulary

TABLES = (EMBEDDING, HEAD, HEAD.replace("weight", "bias"))  # tensors with a row for each token
_BLOCK = 1024  # rows added up at a time


def table_recipe(info: TensorInfo, vocabulary: Vocabulary, donors: Sequence[str]) -> Recipe:
    """One of `TABLES`, of `Branches`; models are read one after the other.

    Args:
        info: of the merged table. donors: the models whose tensors outside of the experts are kept.
    """
    chosen = {name: rows for name, rows in vocabulary.chosen(donors).items() if (rows >= 0).any()}
    sources = tuple(f"{name}/{info.name}" for name in chosen)
    compute = partial(_assembled, list(chosen.values()), info.dtype)
    return Recipe((info,), sources, compute, info.name, streams=True)


def _assembled(
    chosen: Sequence[torch.Tensor], dtype: torch.dtype, tensors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Row by row the mean of what was chosen, in float32 at least; one model's row is kept bit for bit."""
    counts = torch.stack([rows >= 0 for rows in chosen]).sum(0)
    table = shift = torch.empty(0)
    for place, rows in enumerate(chosen):
        own = tensors[place]
        if place == 0:
            several = bool((counts > 1).any())
            wide = torch.promote_types(own.dtype, torch.float32) if several else dtype
            table = torch.zeros((len(counts), *own.shape[1:]), dtype=wide)
            shift = torch.zeros_like(table) if several else shift
            begun = torch.zeros(len(counts), dtype=torch.bool)
        first = (rows >= 0) & ~begun
        further = (rows >= 0) & begun
        table[first] = own[rows[first]].to(table.dtype)
        if further.any():
            shift[further] += own[rows[further]].to(table.dtype) - table[further]
        begun |= first
    if len(shift):
        shared = counts > 1
        table[shared] += shift[shared] / counts[shared].view(-1, *[1] * (table.dim() - 1))
    if not begun.all():
        table[~begun] = _mean_row(table, begun).to(table.dtype)
    return [table.to(dtype)]


def _mean_row(table: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """The mean of the counted rows, added up in double and in an order that no number of threads changes."""
    total = torch.zeros((_BLOCK, *table.shape[1:]), dtype=torch.double)
    for rows in counted.nonzero().flatten().split(_BLOCK):
        total[: len(rows)] += table[rows]
    while len(total) > 1:
        half = len(total) // 2
        total = total[:half] + total[half:]
    return total[0] / counted.sum()

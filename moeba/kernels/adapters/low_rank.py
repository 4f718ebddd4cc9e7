"""Low-rank changes of experts' matrices, as two thin matrices an expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class LowRank(NamedTuple):
    """What is added to the matrix of each expert, `[out, in]` for one that maps `in` to `out`: `second @ first`.

    `first` is `[experts, rank, in]`, `second` `[experts, out, rank]` with the adapter's scaling in it.
    """

    first: torch.Tensor
    second: torch.Tensor

    @classmethod
    def of(cls, a: torch.Tensor, b: torch.Tensor, num_experts: int, scaling: float) -> LowRank:
        """From PEFT's matrices: `a` `[experts * rank, in]`, expert after expert, and `b` `[out, rank * experts]`, in
        which neighbours belong to different experts."""
        first = a.reshape(num_experts, -1, a.shape[1])
        second = b.reshape(b.shape[0], -1, num_experts).permute(2, 0, 1)
        # The copy that scaling makes keeps the order of its input, and a product wants one expert in one place.
        return cls(first, second.contiguous() * scaling)

    @classmethod
    def total(cls, parts: Sequence[LowRank]) -> LowRank | None:
        """Several adapters at once are one of the sum of their ranks; none are None."""
        if len(parts) < 2:
            return parts[0] if parts else None
        return cls(
            torch.cat([part.first for part in parts], dim=1),
            torch.cat([part.second for part in parts], dim=2),
        )


class Adapters(NamedTuple):
    """Of an experts layer: for its product before the gate and for the one after it."""

    inner: LowRank | None = None
    down: LowRank | None = None

    def to(self, dtype: torch.dtype) -> Adapters:
        return Adapters(
            *(None if low_rank is None else LowRank(*(t.to(dtype) for t in low_rank)) for low_rank in self)
        )

"""The arithmetic of averaging experts: in float64 and rounded once, so that the average of equals is that very one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch


class Shared(Enum):
    """What becomes of the shared experts."""

    DROPPED = "dropped"  # there is none, or it answers nothing
    ADDED = "added"  # its neurons are those of the others: their answers are added up
    KEPT = "kept"  # its neurons stand beside the others


@dataclass(frozen=True)
class LayerAverage:
    """One layer's.

    Attributes:
        shares: of each expert in its part of the whole, `[experts]`; those of a part sum to 1.
        parts: P, which experts make up a whole; expert e is part `e % P`.
        factor, half: on the routed and on the shared answers: what the weights of a token's experts sum to.
        sizes: neurons of the routed whole, hidden size, neurons of the dense layer.
        routed: the first source is the experts'; else there is only the shared expert's.
    """

    shares: Sequence[float]
    parts: int
    shared: Shared
    factor: float
    half: float
    sizes: tuple[int, int, int]
    routed: bool
    dtype: torch.dtype

    def _whole(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Each part of the whole, the sum of `shares[e] * rows[e]` over its experts; `rows` is `[experts, ...]`."""
        found = []
        for part in range(self.parts):
            total = torch.zeros(rows.shape[1:], dtype=torch.double)
            for expert in range(part, len(rows), self.parts):
                if self.shares[expert]:
                    total += rows[expert].double() * self.shares[expert]
            found.append(total)
        return found

    def inner(self, kind: str, count: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Gate and up projection, or the latter, `[neurons, hidden]` each.

        Args:
            kind: `weight` or `bias`. count: of projections, which experts hold as `[experts, count * width, hidden]`.
        """
        neurons, hidden, width = self.sizes
        shape = (neurons, hidden) if kind == "weight" else (neurons,)
        if self.routed:
            parts = [part.chunk(count) for part in self._whole(tensors[0])]
            found = [torch.cat([part[index] for part in parts]) for index in range(count)]
        else:
            found = [torch.zeros(shape, dtype=torch.double) for _ in range(count)]
        if self.shared is Shared.KEPT:
            beside = list(tensors[self.routed :]) or [torch.zeros(width - neurons, *shape[1:])] * count
            found = [torch.cat((one, other.double())) for one, other in zip(found, beside, strict=True)]
        return [one.to(self.dtype) for one in found]

    def down(self, kind: str, count: int, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The down projection. Each part of a whole has a `1 / parts` of the weight, and its bias all the same."""
        beside = [tensor.double() * self.half for tensor in tensors[self.routed :]]
        routed = self._whole(tensors[0]) if self.routed else []
        if kind == "bias":
            total = sum(
                (part * (self.factor / self.parts) for part in routed), torch.zeros(self.sizes[1]).double()
            )
            return [sum(beside, total).to(self.dtype)]
        whole = torch.cat(routed, dim=1) * (self.factor / self.parts)
        if self.shared is Shared.KEPT and beside:
            whole = torch.cat((whole, *beside), dim=1)
        elif beside:
            whole = whole + beside[0]
        return [whole.to(self.dtype)]

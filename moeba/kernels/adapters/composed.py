"""An experts layer with adapters put together from parts that can be read: any gate, bias, layout and norm.

It is the layer of moeba/kernels/composed.py with the adapters' products added to its own.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from ..composed import compose
from ..grouped_linear import grouped_linear
from ..layer import ExpertsLayer
from ..routing import sort_by_expert
from .low_rank import Adapters, LowRank


class Sorted(Protocol):
    """Selections (token * top_k + choice) sorted by expert, and products of rows in that order.

    `order` `[selections]`: each one's place. `weights` `[tokens, top_k]`, zero where a selection must not count.
    """

    order: torch.Tensor
    weights: torch.Tensor

    def product(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool
    ) -> torch.Tensor:
        """As `grouped_linear`."""


class Counted:
    """How many rows each expert has is known to Python: a loop over experts."""

    def __init__(self, index: torch.Tensor, weights: torch.Tensor, num_experts: int) -> None:
        routing = sort_by_expert(index, num_experts)
        self.order, self.counts, self.weights = routing.order, routing.counts, weights

    def product(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool
    ) -> torch.Tensor:
        return grouped_linear(rows, weight, self.counts, bias, transposed)


class OnDevice:
    """Where each expert's rows end stays on the device: torch's grouped product, and no wait for the device.

    Selections of other devices' experts go through the last expert with a weight of zero.
    """

    def __init__(self, index: torch.Tensor, weights: torch.Tensor, num_experts: int) -> None:
        flat, everyone = index.reshape(-1), torch.arange(num_experts, device=index.device)
        self.experts, self.order = torch.sort(flat.clamp(max=num_experts - 1), stable=True)
        self.weights = weights.masked_fill(index >= num_experts, 0.0)
        self.ends = torch.searchsorted(self.experts, everyone, right=True).to(torch.int32)

    def product(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool
    ) -> torch.Tensor:
        matrices = weight if transposed else weight.transpose(1, 2)
        answer = F.grouped_mm(rows.to(weight.dtype), matrices, offs=self.ends)
        return answer if bias is None else answer + bias[self.experts]


def project(
    selections: Sorted,
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    transposed: bool,
    low_rank: LowRank | None,
) -> torch.Tensor:
    """Each row times the adapted matrix of its expert, in the dtype of `weight`."""
    answer = selections.product(rows, weight, bias, transposed)
    if low_rank is None:
        return answer
    narrow = selections.product(rows, low_rank.first, None, False)
    return answer + selections.product(narrow, low_rank.second, None, False).to(answer.dtype)


def run(
    layer: ExpertsLayer,
    adapters: Adapters,
    hidden: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    kind: type[Counted | OnDevice] = Counted,
) -> torch.Tensor:
    """`hidden` `[tokens, hidden]`, `index` and `weights` `[tokens, top_k]`; returns what `hidden` is like."""
    chosen = kind(index, weights, layer.num_experts)

    def inner(rows: torch.Tensor) -> torch.Tensor:
        return project(chosen, rows, layer.inner, layer.inner_bias, layer.transposed, adapters.inner)

    def down(act: torch.Tensor) -> torch.Tensor:
        return project(chosen, act, layer.down, layer.down_bias, layer.transposed, adapters.down)

    return compose(layer.module, hidden, chosen.order, chosen.weights, inner, down)

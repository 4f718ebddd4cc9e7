"""An experts layer with adapters and frozen weights on CPU, a few experts at a time.

Forward keeps the input, the product before the gate and two rows of the adapters' rank a selection; backward computes
the rest again. What each step needs besides fits into the caches, and no new memory is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...library.upstream import apply_gate
from ..first_order import first_order
from ..grouped_linear import grouped_linear
from ..layer import ExpertsLayer
from ..memory import lazy_zeros
from ..routing import sort_by_expert
from .low_rank import Adapters, LowRank

# Rows that are taken together: enough to occupy the cores with several experts, few enough to stay in the caches.
ROWS = 2048


def obstacle(layer: ExpertsLayer) -> str | None:
    """Why this path cannot run, or None."""
    if layer.module.has_post_expert_norm:
        return "there is a norm after each expert"
    if layer.gate is None:
        return "the gate is unknown, and might not be the same a second time"
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in layer.module.parameters()):
        return "the experts' own parameters want gradients"
    return None


def run(
    layer: ExpertsLayer,
    adapters: Adapters,
    hidden: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """`hidden` `[tokens, hidden]`, `index` and `weights` `[tokens, top_k]`; returns what `hidden` is like."""
    factors = [tensor for low_rank in adapters for tensor in low_rank or (None, None)]
    tensors = (layer.inner, layer.down, layer.inner_bias, layer.down_bias)
    return _Frozen.apply(layer, index, hidden, weights, *factors, *tensors)


@dataclass(frozen=True)
class _Part:
    """Neighbouring experts, how many rows each has, and where these rows are."""

    experts: slice
    counts: list[int]
    rows: slice

    @classmethod
    def all(cls, counts: list[int]) -> Iterator[_Part]:
        first = start = rows = 0
        for expert, count in enumerate(counts, 1):
            rows += count
            if rows >= ROWS or expert == len(counts):
                if rows:
                    yield cls(slice(first, expert), counts[first:expert], slice(start, start + rows))
                first, start, rows = expert, start + rows, 0

    def times(
        self, rows: torch.Tensor, matrices: torch.Tensor, transposed: bool, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`rows` of this part times the matrices `[experts, out, in]` (`[experts, in, out]` if `transposed`)."""
        bias = None if bias is None else bias[self.experts]
        return grouped_linear(rows, matrices[self.experts], self.counts, bias, transposed)

    def spread(self, biases: torch.Tensor) -> torch.Tensor:
        """The bias of each row's expert."""
        return biases[self.experts].repeat_interleave(torch.tensor(self.counts), dim=0)

    def outer(self, left: torch.Tensor, right: torch.Tensor, into: torch.Tensor) -> None:
        """Each expert's `left.T @ right`, the gradient of a matrix, into `[experts, left's, right's]`."""
        pairs = zip(
            left.to(into.dtype).split(self.counts),
            right.to(into.dtype).split(self.counts),
            into[self.experts],
            strict=True,
        )
        for some, others, gradient in pairs:
            if len(some):
                torch.mm(some.T, others, out=gradient)


@dataclass(frozen=True)
class _Projection:
    """A frozen matrix an expert and its adapter."""

    weight: torch.Tensor
    transposed: bool
    low_rank: LowRank | None

    def forward(
        self, part: _Part, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The answer, and `narrow`: the rows times `low_rank.first`."""
        answer = part.times(rows, self.weight, self.transposed, bias)
        if self.low_rank is None:
            return answer, None
        narrow = part.times(rows, self.low_rank.first, False)
        answer += part.times(narrow, self.low_rank.second, False)
        return answer, narrow

    def narrow_backward(self, part: _Part, change: torch.Tensor) -> torch.Tensor | None:
        """The gradient of `narrow` from that of the answer."""
        return None if self.low_rank is None else part.times(change, self.low_rank.second, True)

    def rows_backward(self, part: _Part, change: torch.Tensor, d_narrow: torch.Tensor | None) -> torch.Tensor:
        """The gradient of the rows from that of the answer."""
        d_rows = part.times(change, self.weight, not self.transposed)
        if self.low_rank is not None and d_narrow is not None:
            d_rows += part.times(d_narrow, self.low_rank.first, True)
        return d_rows


def _projections(
    layer: ExpertsLayer, factors: tuple[torch.Tensor | None, ...]
) -> tuple[_Projection, _Projection]:
    inner, down = (None if a is None or b is None else LowRank(a, b) for a, b in (factors[:2], factors[2:]))
    return (
        _Projection(layer.inner, layer.transposed, inner),
        _Projection(layer.down, layer.transposed, down),
    )


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layer: ExpertsLayer,
        index: torch.Tensor,
        hidden: torch.Tensor,
        weights: torch.Tensor,
        *tensors: torch.Tensor | None,
    ) -> torch.Tensor:
        routing = sort_by_expert(index, layer.num_experts)
        inner, down = _projections(layer, tensors[:4])
        shares = weights.reshape(-1)[routing.order, None]
        output = hidden.new_zeros(hidden.shape, dtype=_wide(hidden))
        kept: list[torch.Tensor | None] = []
        for part in _Part.all(routing.counts):
            tokens, share = routing.tokens[part.rows], shares[part.rows]
            before, narrow_inner = inner.forward(part, hidden.index_select(0, tokens), layer.inner_bias)
            # The share goes to the activation, which has fewer numbers than the answer.
            act = apply_gate(layer.module, before) * share
            answer, narrow_down = down.forward(part, act, None)
            if layer.down_bias is not None:
                answer += part.spread(layer.down_bias) * share
            output.index_add_(0, tokens, answer.to(output.dtype))
            if any(ctx.needs_input_grad):
                kept += [before, narrow_inner, narrow_down]
        ctx.layer, ctx.counts = layer, routing.counts
        ctx.save_for_backward(routing.order, routing.tokens, hidden, weights, *tensors, *kept)
        return output.to(hidden.dtype)

    @staticmethod
    @first_order
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, d_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        order, tokens, hidden, weights, *others = ctx.saved_tensors
        factors, kept = tuple(others[:4]), iter(others[8:])
        inner, down = _projections(replace(ctx.layer, inner=others[4], down=others[5]), factors)
        wants_hidden, wants_weights, *wants_factors = ctx.needs_input_grad[2:8]
        d_factors = [
            lazy_zeros(factor) if wanted else None
            for factor, wanted in zip(factors, wants_factors, strict=True)
        ]
        d_inner_first, d_inner_second, d_down_first, d_down_second = d_factors
        d_hidden = torch.zeros_like(hidden, dtype=_wide(hidden))
        d_weights = torch.zeros(weights.shape, dtype=_wide(weights))
        shares = weights.reshape(-1)[order, None]
        for part in _Part.all(ctx.counts):
            before, narrow_inner, narrow_down = next(kept), next(kept), next(kept)
            where, share = tokens[part.rows], shares[part.rows]
            change = d_output.index_select(0, where)
            before = before.detach().requires_grad_()
            with torch.enable_grad():
                act = apply_gate(ctx.layer.module, before)
            d_narrow = down.narrow_backward(part, change)
            d_act = down.rows_backward(part, change, d_narrow)
            if d_down_first is not None and d_narrow is not None:
                part.outer(d_narrow, act.detach() * share, d_down_first)
            if d_down_second is not None:
                part.outer(change, narrow_down, d_down_second)
            if wants_weights:
                d_share = (d_act * act.detach()).sum(1, dtype=d_weights.dtype)
                if others[7] is not None:
                    d_share += (change * part.spread(others[7])).sum(1, dtype=d_weights.dtype)
                d_weights.view(-1)[order[part.rows]] = d_share
            (d_before,) = torch.autograd.grad(act, before, (d_act * share).to(act.dtype))
            d_narrow = inner.narrow_backward(part, d_before)
            if d_inner_first is not None and d_narrow is not None:
                part.outer(d_narrow, hidden.index_select(0, where), d_inner_first)
            if d_inner_second is not None:
                part.outer(d_before, narrow_inner, d_inner_second)
            if wants_hidden:
                d_rows = inner.rows_backward(part, d_before, d_narrow)
                d_hidden.index_add_(0, where, d_rows.to(d_hidden.dtype))
        return (
            None,
            None,
            d_hidden.to(hidden.dtype) if wants_hidden else None,
            d_weights.to(weights.dtype) if wants_weights else None,
            *d_factors,
            *[None] * 4,
        )

"""Rows sorted by expert, each times the matrix of its expert: the readable loop, with a backward of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .first_order import first_order
from .memory import lazy_zeros


def _slices(counts: list[int]) -> Iterator[tuple[int, slice]]:
    """Each expert that has rows, and where they are."""
    start = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, slice(start, start + count)
        start += count


def _is_slow_on_cpu(matrix: torch.Tensor) -> bool:
    """Most processors multiply 16-bit floats several times slower than 32-bit ones: widen one expert at a time."""
    return matrix.device.type == "cpu" and matrix.dtype in (torch.bfloat16, torch.float16)


class _GroupedLinear(torch.autograd.Function):
    """`weight` `[experts, out, in]`; see `grouped_linear`."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, counts: list[int]
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, weight, bias)
        ctx.counts = counts
        output = rows.new_empty(rows.shape[0], weight.shape[1], dtype=weight.dtype)
        for expert, where in _slices(counts):
            matrix, some = weight[expert], rows[where].to(weight.dtype)
            if _is_slow_on_cpu(weight):
                answer = some.float() @ matrix.float().T
                output[where] = answer if bias is None else answer + bias[expert]
            elif bias is None:
                torch.mm(some, matrix.T, out=output[where])
            else:
                torch.addmm(bias[expert], some, matrix.T, out=output[where])
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, d_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, bias = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias, _ = ctx.needs_input_grad
        wide = torch.float32 if _is_slow_on_cpu(weight) else weight.dtype
        d_rows = torch.empty_like(rows) if wants_rows else None
        d_weight = lazy_zeros(weight) if wants_weight else None
        d_bias = torch.zeros_like(bias) if wants_bias else None
        for expert, where in _slices(ctx.counts):
            change = d_output[where].to(wide)
            if d_rows is not None:
                d_rows[where] = (change @ weight[expert].to(wide)).to(rows.dtype)
            if d_weight is not None:
                d_weight[expert] = (change.T @ rows[where].to(wide)).to(weight.dtype)
            if d_bias is not None:
                d_bias[expert] = change.sum(0)
        return d_rows, d_weight, d_bias, None


def grouped_linear(
    rows: torch.Tensor,
    weight: torch.Tensor,
    counts: list[int],
    bias: torch.Tensor | None = None,
    transposed: bool = False,
) -> torch.Tensor:
    """`rows[i] @ weight[expert of i].T (+ bias[expert of i])`, in the weights' dtype.

    Args:
        rows: `[rows, in]`, sorted by expert. counts: how many rows each expert has.
        weight: `[experts, out, in]`, or `[experts, in, out]` if `transposed`.
        bias: `[experts, out]`.
    """
    return _GroupedLinear.apply(rows, weight.transpose(1, 2) if transposed else weight, bias, counts)

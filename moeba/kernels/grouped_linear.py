"""Rows sorted by expert, each times the matrix of its expert, with a backward of its own.

The loops here are the readable version; on CPU the compiled kernels do the same where they can be had.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from . import cpu
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


def _product(
    rows: torch.Tensor, weight: torch.Tensor, counts: list[int], bias: torch.Tensor | None
) -> torch.Tensor:
    """`[rows, in]` and `[experts, out, in]` to `[rows, out]`, in the weights' dtype."""
    if cpu.multiplies(rows, weight):
        return cpu.grouped_product(rows, weight, counts, bias).to(weight.dtype)
    wide = torch.float32 if _is_slow_on_cpu(weight) else weight.dtype
    output = rows.new_empty(rows.shape[0], weight.shape[1], dtype=weight.dtype)
    for expert, where in _slices(counts):
        some, matrix = rows[where].to(wide), weight[expert].to(wide).T
        output[where] = some @ matrix if bias is None else torch.addmm(bias[expert].to(wide), some, matrix)
    return output


def _gradient(
    rows: torch.Tensor, d_output: torch.Tensor, weight: torch.Tensor, counts: list[int]
) -> torch.Tensor:
    """How `weight` changes; experts without rows are never written."""
    if cpu.multiplies(rows, weight):
        return cpu.grouped_gradient(rows, d_output, weight, counts)
    wide = torch.float32 if _is_slow_on_cpu(weight) else weight.dtype
    d_weight = lazy_zeros(weight)
    for expert, where in _slices(counts):
        d_weight[expert] = d_output[where].to(wide).T @ rows[where].to(wide)
    return d_weight


class _GroupedLinear(torch.autograd.Function):
    """`weight` `[experts, out, in]`; see `grouped_linear`."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, counts: list[int]
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, weight, bias)
        ctx.counts = counts
        return _product(rows, weight, counts, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, d_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, bias = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias, _ = ctx.needs_input_grad
        d_rows = d_weight = d_bias = None
        if wants_rows:
            d_rows = _product(d_output, weight.mT, ctx.counts, None).to(rows.dtype)
        if wants_weight:
            d_weight = _gradient(rows, d_output, weight, ctx.counts)
        if wants_bias:
            d_bias = torch.zeros_like(bias)
            for expert, where in _slices(ctx.counts):
                d_bias[expert] = d_output[where].sum(0, dtype=torch.float32)
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

"""The forward of a layer of experts as launches of kernels, without autograd."""

from __future__ import annotations

from typing import Any

import torch

from . import forward_kernels
from .operands import Operands, Strides, bias_arguments, on_device_of
from .plan import Plan
from .tuning import Tuned, product_shapes

_inner_product = Tuned(forward_kernels.inner_product, ("experts", "weight_stride_out"))
_rows_product = Tuned(forward_kernels.rows_product, ("experts", "weight_stride_out"))
_SUMMED = 1024  # columns that a program sums


def forward(operands: Operands, plan: Plan | None, keep: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The layer's answer `[tokens, hidden]`, in hidden's dtype, and if `keep` the first product by sorted row.

    Without a plan each selection is a tile of its own. That is how one token is answered: its choices are different
    experts, so there is nothing to sort.
    """
    if not operands.tokens:
        kept = operands.inner.new_empty(0, operands.inner_rows) if keep else None
        return operands.hidden.new_empty(operands.hidden.shape), kept
    with on_device_of(operands.hidden):
        activated, kept = inner_product(operands, plan, activate=True, keep=keep)
        answers = rows_product(
            operands,
            plan,
            activated,
            operands.down,
            operands.strides(operands.down),
            operands.down_bias,
            operands.weights,
            operands.hidden_size,
        )
        return sum_choices(operands, answers), kept


def inner_product(operands: Operands, plan: Plan | None, activate: bool, keep: bool) -> tuple[Any, Any]:
    """Activations `[selections, width]` and first product `[selections, inner rows]` by sorted row, each if wanted."""
    o = operands
    activated = o.down.new_empty(o.selections, o.width) if activate else None
    kept = o.inner.new_empty(o.selections, o.inner_rows) if keep else None
    strides = o.strides(o.inner)
    parts = 2 if o.gate.gated else 1
    constants = dict(
        HIDDEN=o.hidden_size,
        WIDTH=o.width,
        KIND=o.gate.kind,
        GATED=o.gate.gated,
        INTERLEAVED=o.gate.interleaved,
        # Neighbours in memory are to be neighbours in the tile.
        STACKED=o.gate.gated and not o.gate.interleaved and strides[2] == 1,
        DIRECT=plan is None,
        **o.constants(plan, o.inner.dtype),
    )
    arguments = (
        o.hidden,
        *o.hidden.stride(),
        o.inner,
        *strides,
        *bias_arguments(o.inner_bias),
        kept,
        activated,
        *o.rows(plan),
        o.index.shape[1],
        o.gate.alpha,
        o.gate.limit,
    )
    tiles = o.selections if plan is None else plan.tiles
    _inner_product(
        lambda: product_shapes(
            constants["BLOCK_M"], o.inner.dtype == torch.float32, parts, widest=128 * parts
        ),
        lambda meta: (tiles * -(-o.width // meta["BLOCK_N"]),),
        (o.inner.device, o.inner.dtype, o.hidden.dtype, o.experts, strides, keep, activate),
        *arguments,
        **constants,
    )
    return activated, kept


def rows_product(
    operands: Operands,
    plan: Plan | None,
    values: torch.Tensor,
    weight: torch.Tensor,
    strides: Strides,
    bias: torch.Tensor | None,
    scales: torch.Tensor | None,
    outputs: int,
) -> torch.Tensor:
    """`(values @ weight[expert] + bias) * scale`: sorted rows in, `[selections, outputs]` in the tokens' order out.

    `strides` are those of the weight as `[expert, in, out]`. What a sentinel's row holds is undefined.
    """
    o = operands
    answers = weight.new_empty(o.selections, outputs)
    constants = dict(
        INPUTS=values.shape[1],
        OUTPUTS=outputs,
        DIRECT=plan is None,
        **o.constants(plan, weight.dtype),
    )
    tiles = o.selections if plan is None else plan.tiles
    _rows_product(
        lambda: product_shapes(constants["BLOCK_M"], weight.dtype == torch.float32),
        lambda meta: (tiles * -(-outputs // meta["BLOCK_N"]),),
        (weight.device, weight.dtype, values.dtype, o.experts, strides),
        values,
        weight,
        *strides,
        *bias_arguments(bias),
        scales,
        answers,
        *o.rows(plan),
        **constants,
    )
    return answers


def sum_choices(operands: Operands, answers: torch.Tensor) -> torch.Tensor:
    """`[tokens, hidden]` in hidden's dtype: the sum over each token's choices, in their order, in float32."""
    output = operands.hidden.new_empty(operands.tokens, operands.hidden_size)
    columns = operands.hidden_size
    forward_kernels.sum_choices[(operands.tokens, -(-columns // _SUMMED))](
        answers,
        operands.index,
        output,
        operands.experts,
        operands.index.shape[1],
        COLUMNS=columns,
        BLOCK=_SUMMED,
    )
    return output

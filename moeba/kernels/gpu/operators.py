"""The layer as two operators of PyTorch, which torch.compile takes whole instead of tracing into launches."""

from __future__ import annotations

from typing import Any

import torch

from ..gates import Gate
from .backward import backward, wanted_of
from .forward import forward
from .operands import Operands

_LAYER = (
    "Tensor hidden, Tensor index, Tensor weights, Tensor inner, Tensor? inner_bias, Tensor down, Tensor? down_bias, "
    "str kind, bool gated, bool interleaved, float alpha, float limit, bool transposed"
)
_WORDS = 13  # arguments of a layer


def _operands(layer: tuple[Any, ...]) -> Operands:
    return Operands(*(*layer[:7], Gate(*layer[7:12]), layer[12]))


@torch.library.custom_op(
    "moeba::gpu_experts",
    mutates_args=(),
    schema=f"({_LAYER}, bool plan, bool keep) -> (Tensor, Tensor, Tensor)",
)
def gpu_experts(*arguments: Any) -> tuple[torch.Tensor, ...]:
    """The answer; then what the backward needs, empty where it is not asked for: sorted routing, first product."""
    *layer, wants_plan, keep = arguments
    o = _operands(tuple(layer))
    plan = o.plan() if wants_plan or o.tokens > 1 else None
    output, kept = forward(o, plan, keep)
    buffer = plan.buffer if plan is not None and wants_plan else o.index.new_empty(0, dtype=torch.int32)
    return output, buffer, o.inner.new_empty(0) if kept is None else kept


@gpu_experts.register_fake
def _(*arguments: Any) -> tuple[torch.Tensor, ...]:
    *layer, wants_plan, keep = arguments
    o = _operands(tuple(layer))
    buffer = o.index.new_empty(o.plan_size if wants_plan else 0, dtype=torch.int32)
    kept = o.inner.new_empty((o.selections, o.inner_rows) if keep else 0)
    return o.hidden.new_empty(o.tokens, o.hidden_size), buffer, kept


@torch.library.custom_op(
    "moeba::gpu_experts_backward",
    mutates_args=(),
    schema=f"({_LAYER}, Tensor plan, Tensor kept, Tensor upstream, bool[] needed) -> Tensor[]",
)
def gpu_experts_backward(*arguments: Any) -> list[torch.Tensor]:
    """The gradients of those of the seven tensors that are `needed`."""
    *layer, buffer, kept, upstream, needed = arguments
    o = _operands(tuple(layer))
    kept = kept if kept.numel() else None
    found = backward(o, o.plan_in(buffer), kept, upstream, wanted_of(needed))
    return [gradient for gradient in found.in_order() if gradient is not None]


@gpu_experts_backward.register_fake
def _(*arguments: Any) -> list[torch.Tensor]:
    *tensors, needed = (*arguments[:7], arguments[-1])
    return [torch.empty_like(tensor) for tensor, need in zip(tensors, needed, strict=True) if need]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.words = inputs[7:_WORDS]
    ctx.save_for_backward(*inputs[:7], *output[1:])


def _differentiate(ctx: Any, upstream: torch.Tensor, *unused: Any) -> tuple[Any, ...]:
    *tensors, buffer, kept = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:7])
    found = iter(gpu_experts_backward(*tensors, *ctx.words, buffer, kept, upstream, needed))
    nothing = [None] * (_WORDS - 7 + 2)
    return (*(next(found) if need else None for need in needed), *nothing)


gpu_experts.register_autograd(_differentiate, setup_context=_save)

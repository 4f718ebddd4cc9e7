"""The layer as a node of autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .backward import backward, wanted_of
from .forward import forward
from .operands import Operands


class FusedExperts(torch.autograd.Function):
    """Keeps its inputs, the sorted routing and, unless it is to be recomputed, the first product."""

    @staticmethod
    def forward(ctx: Any, recompute: bool, *operands: Any) -> torch.Tensor:
        """The operands in the order of `Operands`."""
        o = Operands(*operands)
        ctx.gate, ctx.transposed = o.gate, o.transposed
        ctx.wanted = wanted_of(ctx.needs_input_grad[1:8])
        plan = o.plan()
        output, kept = forward(o, plan, keep=ctx.wanted.kept and not recompute)
        ctx.save_for_backward(*operands[:7], plan.buffer, kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
        """A gradient for each operand that wants one."""
        *tensors, buffer, kept = ctx.saved_tensors
        o = Operands(*(*tensors, ctx.gate, ctx.transposed))
        gradients = backward(o, o.plan_in(buffer), kept, upstream, ctx.wanted)
        return None, *gradients.in_order(), None, None

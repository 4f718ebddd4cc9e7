"""A layer of experts through the kernels, inside and outside of autograd and torch.compile."""

from __future__ import annotations

from dataclasses import astuple

import torch

from ..layer import ExpertsLayer
from .autograd import FusedExperts
from .forward import forward
from .operands import Operands
from .operators import gpu_experts
from .settings import settings


def run(
    layer: ExpertsLayer, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`[tokens, hidden]` in and out; see `moeba.kernels.gpu.run`."""
    tensors = (
        hidden,
        index.contiguous(),
        weights.contiguous(),
        layer.inner,
        layer.inner_bias,
        layer.down,
        layer.down_bias,
    )
    gate, transposed = layer.gate, layer.transposed
    assert gate is not None  # which were an obstacle
    needed = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )
    if torch.compiler.is_compiling():
        return gpu_experts(*tensors, *astuple(gate), transposed, needed, needed and not settings.recompute)[0]
    if needed:
        return FusedExperts.apply(settings.recompute, *tensors, gate, transposed)
    operands = Operands(*tensors, gate, transposed)
    return forward(operands, operands.plan() if operands.tokens > 1 else None, keep=False)[0]

"""Backwards that have no backward of their own, and say so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

Gradients = tuple[torch.Tensor | None, ...]


def first_order(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Decorate the `backward` of an autograd function that cannot be differentiated again.

    Under `create_graph` the gradients carry a node that raises. PyTorch's `once_differentiable` adds it only where the
    incoming gradient requires one: after a loss linear in the output, second derivatives would silently be zero.
    `ctx.creates_graph` tells the wrapped function, which runs without recording, where it is called from.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *changes: Any) -> Gradients:
        ctx.creates_graph = torch.is_grad_enabled()
        with torch.no_grad():
            found = backward(ctx, *changes)
        if not ctx.creates_graph:
            return found
        return tuple(
            gradient if gradient is None else _NoSecond.apply(gradient, _one()) for gradient in found
        )

    return wrapper


def _one() -> torch.Tensor:
    return torch.ones((), requires_grad=True)


class _NoSecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> Any:
        raise RuntimeError(
            "the experts' kernels have no second derivatives: "
            'set experts_implementation="eager" to differentiate gradients'
        )

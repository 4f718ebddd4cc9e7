"""The layer as operators of PyTorch: what torch.compile does not look into, and how a model that does not train calls.

Defined in the plainest way that there is: around a small layer, `torch.library.custom_op` is what takes time.
`moeba::experts` is implemented in C++ (source/operator.h) where the library was compiled with it, else here.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import torch

from .calls import Spec, Tensors, backward, forward

_SPEC = "int gate_kind, bool gated, bool interleaved, float alpha, float limit, bool transposed"
_TENSORS = (
    "Tensor hidden, Tensor index, Tensor weights, Tensor inner, Tensor down, "
    "Tensor? inner_bias, Tensor? down_bias"
)
_operators = torch.library.Library("moeba", "FRAGMENT")
_operators.define(f"experts({_TENSORS}, {_SPEC}) -> Tensor")
_operators.define(f"experts_in_training({_TENSORS}, {_SPEC}) -> (Tensor, Tensor)")
_operators.define(
    f"experts_backward(Tensor d_output, Tensor saved, bool[] needed, {_TENSORS}, {_SPEC}) -> Tensor[]"
)


def _answer(*arguments: Any) -> torch.Tensor:
    return forward(Spec(*arguments[7:]), Tensors(*arguments[:7]), keep=False)[0]


def _answer_and_inner(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    output, saved = forward(Spec(*arguments[7:]), Tensors(*arguments[:7]), keep=True)
    assert saved is not None
    return output, saved


def _gradients(
    d_output: torch.Tensor, saved: torch.Tensor, needed: list[bool], *arguments: Any
) -> list[torch.Tensor]:
    found = backward(Spec(*arguments[7:]), Tensors(*arguments[:7]), d_output, saved, needed)
    return [gradient for gradient in found if gradient is not None]


_implementing = threading.Lock()
_implemented: list[ctypes.CDLL] = []


def implement_operator(kernels: ctypes.CDLL) -> None:
    """Give `moeba::experts` its implementation, once a process."""
    if _implemented:
        return
    with _implementing:
        if not _implemented:
            if register := getattr(kernels, "moeba_register_operator", None):
                register()
            else:
                _operators.impl("experts", _answer, "CPU")
            _implemented.append(kernels)


_operators.impl("experts_in_training", _answer_and_inner, "CPU")
_operators.impl("experts_backward", _gradients, "CPU")


@torch.library.register_fake("moeba::experts", lib=_operators)
def _(hidden: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


@torch.library.register_fake("moeba::experts_in_training", lib=_operators)
def _(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    tensors, spec = Tensors(*arguments[:7]), Spec(*arguments[7:])
    rows = tensors.inner.shape[2 if spec.transposed else 1]
    saved = tensors.inner.new_empty(tensors.index.numel(), rows)
    return torch.empty_like(tensors.hidden, memory_format=torch.contiguous_format), saved


@torch.library.register_fake("moeba::experts_backward", lib=_operators)
def _(d_output: torch.Tensor, saved: torch.Tensor, needed: list[bool], *arguments: Any) -> list[torch.Tensor]:
    differentiable = (arguments[0], *arguments[2:7])
    return [torch.empty_like(tensor) for tensor, wanted in zip(differentiable, needed, strict=True) if wanted]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], output[1])
    ctx.spec = inputs[7:]


def _backward_of_operator(ctx: Any, d_output: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    *tensors, saved = ctx.saved_tensors
    needed = [ctx.needs_input_grad[i] for i in (0, 2, 3, 4, 5, 6)]
    found = iter(torch.ops.moeba.experts_backward(d_output, saved, needed, *tensors, *ctx.spec))
    hidden, *others = [next(found) if wanted else None for wanted in needed]
    return (hidden, None, *others, *[None] * 6)


torch.library.register_autograd(
    "moeba::experts_in_training", _backward_of_operator, setup_context=_keep_for_backward, lib=_operators
)

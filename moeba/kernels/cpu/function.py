"""The fused experts layer on CPU as PyTorch sees it: an operator, and an autograd function where a model trains."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist

from ...library.torch_internals import has_gradient_hooks, will_accumulate
from ..first_order import first_order
from ..layer import ExpertsLayer, foreign_type
from .build import library
from .calls import NEGATIVE, Gradients, Spec, Tensors, backward, forward
from .operators import implement_operator

DTYPES = (torch.float32, torch.bfloat16)  # of weights
HIDDEN_DTYPES = (*DTYPES, torch.float16)
# One backward at a time adds to gradients in place.
_adding = threading.Lock()


def obstacle(layer: ExpertsLayer, hidden: torch.Tensor) -> str | None:
    """Why the compiled kernels cannot run this layer, or None."""
    if hidden.device.type != "cpu":
        return f"the device is {hidden.device.type}"
    weights, dtype = layer.weights, layer.inner.dtype
    if dtype not in DTYPES or hidden.dtype not in HIDDEN_DTYPES:
        return f"{dtype} weights and {hidden.dtype} hidden states are not float32 or bfloat16"
    if any(tensor.dtype is not dtype for tensor in weights):
        return "the weights differ in dtype"
    if layer.gate is None:
        return f"the gate of {type(layer.module).__name__} is none that the kernels know"
    if layer.module.has_post_expert_norm:
        return "there is a norm after each expert"
    if (foreign := foreign_type(*weights)) is not None:
        return f"the weights are of type {foreign}"
    if _has_gaps(layer.inner) or _has_gaps(layer.down):
        return "the weights are stored with gaps"
    return _missing()


def multiplies(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `grouped_product` and `grouped_gradient` can do `rows` `[rows, in]` by `weight` `[experts, out, in]`."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in DTYPES
        and rows.dtype in HIDDEN_DTYPES
        and foreign_type(weight) is None
        and not _has_gaps(weight)
        and _missing() is None
    )


def _has_gaps(weight: torch.Tensor) -> bool:
    """Whether neither rows nor columns of the experts' matrices are contiguous."""
    return 1 not in weight.stride()[1:]


@torch.compiler.assume_constant_result  # torch.compile asks, and does not trace the compiler's call
def _missing() -> str | None:
    kernels = library()
    if isinstance(kernels, str):
        return kernels
    implement_operator(kernels)
    return None


def run(
    layer: ExpertsLayer, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`hidden` `[tokens, hidden]`, `index` and `weights` `[tokens, top_k]`; returns what `hidden` is like."""
    spec = Spec.of(layer)
    tensors = Tensors(hidden, index, weights, layer.inner, layer.down, layer.inner_bias, layer.down_bias)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    operators = torch.ops.moeba
    if torch.compiler.is_compiling():
        if needs_grad:
            return operators.experts_in_training.default(*tensors, *spec)[0]
        return operators.experts.default(*tensors, *spec)
    if needs_grad:
        return _Experts.apply(spec, *tensors)
    try:
        return operators.experts.default(*tensors, *spec)
    except RuntimeError as error:
        if NEGATIVE not in str(error):  # C++ has no other name for what is wrong with a value
            raise
        raise ValueError(NEGATIVE) from None


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spec: Spec, *tensors: Any) -> torch.Tensor:
        given = Tensors(*tensors)
        output, saved = forward(spec, given, keep=True)
        ctx.spec = spec
        ctx.save_for_backward(*given, saved)
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, d_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *tensors, saved = ctx.saved_tensors
        given = Tensors(*tensors)
        needed = Gradients(*(ctx.needs_input_grad[i] for i in (1, 3, 4, 5, 6, 7)))
        add_to: list[torch.Tensor | None] = [None, None]
        if not ctx.creates_graph:
            for i, (name, place) in enumerate((("inner", 3), ("down", 4))):
                if getattr(needed, name):
                    add_to[i] = _existing_gradient(getattr(given, name), ctx.next_functions[place][0])
        with nullcontext() if all(gradient is None for gradient in add_to) else _adding:
            found = backward(ctx.spec, given, d_output, saved, needed, (add_to[0], add_to[1]))
        return (None, found.hidden, None, *found[1:])


def _existing_gradient(tensor: torch.Tensor, node: Any) -> torch.Tensor | None:
    """The `.grad` that autograd would add to next, where adding to it now comes to the same, or None.

    It does not where somebody wants to see the addend: hooks, `torch.autograd.grad`, distributed wrappers. (Nor under
    `create_graph`, where autograd leaves the old tensor as it is; the caller knows.)
    """
    gradient = tensor.grad if tensor.is_leaf else None
    if (
        gradient is None
        or getattr(node, "variable", None) is not tensor
        or gradient.dtype != tensor.dtype
        or type(gradient) is not torch.Tensor
        or gradient.stride() != tensor.stride()
        or not (tensor.is_contiguous() or tensor.mT.is_contiguous())
        or gradient.requires_grad
        or has_gradient_hooks(tensor)
        or dist.is_available()
        and dist.is_initialized()
    ):
        return None
    try:
        return gradient if will_accumulate(node) else None
    except RuntimeError:  # torch.autograd.grad asks for this very gradient
        return None

"""The fused experts layer on CPU as PyTorch sees it: an autograd function, and an operator for torch.compile."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist

from ..first_order import first_order
from ..layer import ExpertsLayer, foreign_type
from .build import library
from .calls import Gradients, Spec, Tensors, backward, forward

DTYPES = (torch.float32, torch.bfloat16)
# One backward at a time adds to gradients in place.
_adding = threading.Lock()


def obstacle(layer: ExpertsLayer, hidden: torch.Tensor) -> str | None:
    """Why the compiled kernels cannot run this layer, or None."""
    if hidden.device.type != "cpu":
        return f"the device is {hidden.device.type}"
    if hidden.dtype not in (*DTYPES, torch.float16) or any(
        tensor.dtype not in DTYPES for tensor in layer.weights
    ):
        return f"{layer.inner.dtype} weights and {hidden.dtype} hidden states are not float32 or bfloat16"
    if any(tensor.dtype != layer.inner.dtype for tensor in layer.weights):
        return "the weights differ in dtype"
    if layer.gate is None:
        return f"the gate of {type(layer.module).__name__} is none that the kernels know"
    if layer.module.has_post_expert_norm:
        return "there is a norm after each expert"
    if (foreign := foreign_type(*layer.weights)) is not None:
        return f"the weights are of type {foreign}"
    if any(_has_gaps(tensor) for tensor in (layer.inner, layer.down)):
        return "the weights are stored with gaps"
    return _missing()


def multiplies(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `grouped_product` and `grouped_gradient` can do `rows` `[rows, in]` by `weight` `[experts, out, in]`."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in DTYPES
        and rows.dtype in (*DTYPES, torch.float16)
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
    return kernels if isinstance(kernels, str) else None


def run(
    layer: ExpertsLayer, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`hidden` `[tokens, hidden]`, `index` and `weights` `[tokens, top_k]`; returns what `hidden` is like."""
    spec = Spec.of(layer)
    tensors = Tensors(hidden, index, weights, layer.inner, layer.down, layer.inner_bias, layer.down_bias)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if torch.compiler.is_compiling():
        operators = torch.ops.moeba
        if needs_grad:
            return operators.experts_in_training(*tensors, *spec)[0]
        return operators.experts(*tensors, *spec)
    if needs_grad:
        return _Experts.apply(spec, *tensors)
    return forward(spec, tensors, keep=False)[0]


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
        or tensor._backward_hooks
        or getattr(tensor, "_post_accumulate_grad_hooks", None)
        or dist.is_available()
        and dist.is_initialized()
    ):
        return None
    try:
        return gradient if torch._C._will_engine_execute_node(node) else None
    except RuntimeError:  # torch.autograd.grad asks for this very gradient
        return None


# ---- for torch.compile: the same as operators that it does not look into ----
# Defined in the plainest way that there is: around a small layer, `torch.library.custom_op` is what takes time.

_SPEC = "str kind, bool gated, bool interleaved, float alpha, float limit, bool transposed"
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


_operators.impl("experts", _answer, "CPU")
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

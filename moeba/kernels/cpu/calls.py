"""Calls of the compiled kernels: tensors in, tensors out."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..gates import KINDS
from ..layer import ExpertsLayer
from ..memory import gradient_memory, lazy_zeros
from .build import library

NEGATIVE = "top_k_index holds a negative expert index"
_POINTER, _INTEGER, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Problem(ctypes.Structure):
    """One call, as `Problem` in source/layer.h reads it."""

    _fields_ = [
        *((name, _INTEGER) for name in ("tokens", "top_k", "experts", "hidden", "width")),
        *((name, _INTEGER) for name in ("gate_kind", "gated", "interleaved", "threads")),
        *((name, _NUMBER) for name in ("alpha", "limit")),
        *((name, _POINTER) for name in ("inner", "down", "inner_bias", "down_bias")),
        *((f"inner_{name}", _INTEGER) for name in ("expert", "out", "in")),
        *((f"down_{name}", _INTEGER) for name in ("expert", "out", "in")),
        *((name, _POINTER) for name in ("x", "index", "weights", "out", "saved")),
        *((name, _POINTER) for name in ("d_out", "d_x", "d_weights")),
        *((name, _POINTER) for name in ("d_inner", "d_down", "d_inner_bias", "d_down_bias")),
        *((name, _INTEGER) for name in ("add_inner", "add_down")),
    ]


class Grouped(ctypes.Structure):
    """A product of sorted rows, as `Grouped` in source/grouped.h reads it."""

    _fields_ = [
        *((name, _INTEGER) for name in ("rows", "experts", "in", "out", "threads")),
        *((name, _POINTER) for name in ("counts", "weight", "bias")),
        *((f"weight_{name}", _INTEGER) for name in ("expert", "out", "in")),
        *((name, _POINTER) for name in ("x", "y", "d_weight")),
    ]


class Spec(NamedTuple):
    """What is fixed for a layer: its gate, and whether its matrices are stored `[in, out]`."""

    gate_kind: int  # its place in `gates.KINDS`
    gated: bool
    interleaved: bool
    alpha: float
    limit: float
    transposed: bool

    @classmethod
    def of(cls, layer: ExpertsLayer) -> Spec:
        gate = layer.gate
        assert gate is not None
        return cls(
            KINDS.index(gate.kind), gate.gated, gate.interleaved, gate.alpha, gate.limit, layer.transposed
        )


class Tensors(NamedTuple):
    """Of one call: `hidden` `[tokens, hidden]`, `index` and `weights` `[tokens, top_k]`, then the layer's tensors."""

    hidden: torch.Tensor
    index: torch.Tensor  # type: ignore[assignment]  # in place of a method of tuples
    weights: torch.Tensor
    inner: torch.Tensor
    down: torch.Tensor
    inner_bias: torch.Tensor | None
    down_bias: torch.Tensor | None


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _plain(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Contiguous and of `dtype`; the tensor itself where it is so already, because only its memory is read."""
    return (
        tensor if tensor.dtype is dtype and tensor.is_contiguous() else tensor.detach().to(dtype).contiguous()
    )


class Call:
    """A `Problem`, and the tensors that must live as long as its pointers are used."""

    def __init__(self, spec: Spec, tensors: Tensors) -> None:
        hidden, index, weights, inner, down, *biases = self.tensors = tensors
        self.x, self.index = _plain(hidden, torch.float32), _plain(index, torch.int64)
        self.weights = _plain(weights, torch.float32)
        self.biases = [None if bias is None else _plain(bias, bias.dtype) for bias in biases]
        experts, inner_out, inner_in = inner.stride()
        down_experts, down_out, down_in = down.stride()
        width = down.shape[2]
        if spec.transposed:
            inner_out, inner_in, down_out, down_in, width = (
                inner_in,
                inner_out,
                down_in,
                down_out,
                down.shape[1],
            )
        # In the order of the fields: setting them one by one takes as long as a small layer.
        self.problem = Problem(
            *self.index.shape, inner.shape[0], self.x.shape[1], width,
            spec.gate_kind, spec.gated, spec.interleaved, torch.get_num_threads(),
            spec.alpha, spec.limit,
            inner.data_ptr(), down.data_ptr(), *map(_pointer, self.biases),
            experts, inner_out, inner_in, down_experts, down_out, down_in,
            self.x.data_ptr(), self.index.data_ptr(), self.weights.data_ptr(),
        )  # fmt: skip

    @property
    def inner_rows(self) -> int:
        return self.problem.width * (1 + self.problem.gated)

    def run(self, direction: str) -> None:
        if _run(direction, self.tensors.inner.dtype, self.problem):
            raise ValueError(NEGATIVE)


def _run(name: str, dtype: torch.dtype, arguments: ctypes.Structure) -> int:
    return _function(name, dtype)(ctypes.byref(arguments))


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Callable[[Any], int]:
    kernels = library()
    assert not isinstance(kernels, str)
    return getattr(kernels, f"moeba_{name}_{str(dtype).removeprefix('torch.')}")


def forward(spec: Spec, tensors: Tensors, keep: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The layer's output in hidden's dtype and, if `keep`, what the backward wants: the inner product before its gate,
    `[selections, inner rows]` in the weights' dtype."""
    call = Call(spec, tensors)
    out = torch.empty_like(call.x)
    saved = call.x.new_empty(call.index.numel(), call.inner_rows, dtype=tensors.inner.dtype) if keep else None
    call.problem.out, call.problem.saved = out.data_ptr(), _pointer(saved)
    call.run("forward")
    return out.to(tensors.hidden.dtype), saved


def release_scratch() -> None:
    """Give back the memory that the kernels keep for their next call from this thread."""
    if library.cache_info().currsize and not isinstance(kernels := library(), str):
        kernels.moeba_release_scratch()


class Gradients(NamedTuple):
    """Of each of `Tensors` but the index; None where none was asked for."""

    hidden: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    inner: torch.Tensor | None = None
    down: torch.Tensor | None = None
    inner_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None


def backward(
    spec: Spec,
    tensors: Tensors,
    d_out: torch.Tensor,
    saved: torch.Tensor | None,
    needed: Gradients | Sequence[bool],
    add_to: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
) -> Gradients:
    """The gradients that `needed` has set; `saved` None computes the inner product again.

    `add_to` holds tensors to which the gradients of `inner` and `down` are added; those are returned as None.
    """
    call = Call(spec, tensors)
    p = call.problem
    d_out = _plain(d_out, torch.float32)
    p.d_out, p.saved = d_out.data_ptr(), _pointer(saved)
    found: dict[str, torch.Tensor] = {}
    adding = {name for name, into in zip(("inner", "down"), add_to, strict=True) if into is not None}
    active = torch.zeros(p.experts, dtype=torch.bool)
    active[tensors.index[tensors.index < p.experts]] = True
    for name, wanted in zip(Gradients._fields, needed, strict=True):
        if not wanted or name in adding:
            continue
        like = getattr(tensors, name)
        if name in ("hidden", "weights"):
            found[name] = torch.empty(like.shape, dtype=torch.float32)
        else:
            found[name] = gradient_memory(like, active)
    if "weights" in found and (tensors.index >= p.experts).any():
        found["weights"].zero_()
    targets = {name: found.get(name) for name in Gradients._fields}
    for name, into in zip(("inner", "down"), add_to, strict=True):
        if into is not None:
            torch.autograd.graph.increment_version(into)
            targets[name] = into
    p.add_inner, p.add_down = (into is not None for into in add_to)
    p.d_x, p.d_weights, p.d_inner, p.d_down, p.d_inner_bias, p.d_down_bias = map(_pointer, targets.values())
    call.run("backward")
    return Gradients(**{name: value.to(getattr(tensors, name).dtype) for name, value in found.items()})


def grouped_product(
    rows: torch.Tensor, weight: torch.Tensor, counts: list[int], bias: torch.Tensor | None
) -> torch.Tensor:
    """`[rows, in]` sorted by expert, times `weight` `[experts, out, in]` each; float32 `[rows, out]`."""
    x = _plain(rows, torch.float32)
    y = x.new_empty(x.shape[0], weight.shape[1])
    _run_grouped(
        "grouped_product", x, y, weight, counts, bias=None if bias is None else bias.detach().contiguous()
    )
    return y


def grouped_gradient(
    rows: torch.Tensor, d_output: torch.Tensor, weight: torch.Tensor, counts: list[int]
) -> torch.Tensor:
    """The gradient of `weight` in `grouped_product`, stored as it is stored."""
    d_weight = lazy_zeros(weight)
    x, y = _plain(rows, torch.float32), _plain(d_output, torch.float32)
    _run_grouped("grouped_gradient", x, y, weight, counts, d_weight=d_weight)
    return d_weight


def _run_grouped(
    name: str,
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    counts: list[int],
    **others: torch.Tensor | None,
) -> None:
    g = Grouped()
    g.rows, g.experts, g.out, g.threads = (
        x.shape[0],
        weight.shape[0],
        weight.shape[1],
        torch.get_num_threads(),
    )
    setattr(g, "in", x.shape[1])
    rows_of_experts = (_INTEGER * len(counts))(*counts)
    g.counts, g.weight = ctypes.addressof(rows_of_experts), weight.data_ptr()
    g.weight_expert, g.weight_out, g.weight_in = weight.stride()
    g.x, g.y = x.data_ptr(), y.data_ptr()
    for field, tensor in others.items():
        setattr(g, field, _pointer(tensor))
    _run(name, weight.dtype, g)

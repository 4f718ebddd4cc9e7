"""The backward of a layer of experts as launches of kernels: each gradient if it is wanted, none in full twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import backward_kernels
from .forward import inner_product, rows_product, sum_choices
from .operands import Operands, bias_arguments, on_device_of, precision_of
from .plan import Plan
from .tuning import Tuned, gradient_depth, gradient_shapes, product_shapes

_gate_gradient = Tuned(backward_kernels.gate_gradient, ("experts", "weight_stride_out"))
_weight_gradient = Tuned(backward_kernels.weight_gradient, ("gradient_stride_e",))
_BIAS_COLUMNS = 64


@dataclass(frozen=True)
class Wanted:
    """Which gradients are asked for."""

    hidden: bool
    weights: bool
    inner: bool
    inner_bias: bool
    down: bool
    down_bias: bool

    @property
    def inner_product(self) -> bool:
        """Whether any needs the gradient of the first product."""
        return self.hidden or self.inner or self.inner_bias

    @property
    def kept(self) -> bool:
        """Whether any needs the first product itself."""
        return self.inner_product or self.weights or self.down


@dataclass(frozen=True)
class Gradients:
    """Of each tensor of `Operands`, or None where it was not wanted."""

    hidden: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    inner: torch.Tensor | None = None
    inner_bias: torch.Tensor | None = None
    down: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    def in_order(self) -> tuple[torch.Tensor | None, ...]:
        """As the tensors stand in `Operands`."""
        return self.hidden, None, self.weights, self.inner, self.inner_bias, self.down, self.down_bias


def wanted_of(needed: Sequence[bool]) -> Wanted:
    """From what autograd says of the tensors of `Operands`, in their order."""
    hidden, _, weights, inner, inner_bias, down, down_bias = needed
    return Wanted(hidden, weights, inner, inner_bias, down, down_bias)


def backward(
    operands: Operands, plan: Plan, kept: torch.Tensor | None, upstream: torch.Tensor, wanted: Wanted
) -> Gradients:
    """Gradients from `upstream` `[tokens, hidden]`. Without `kept`, the first product is computed again if needed."""
    o = operands
    if not o.tokens:
        return _zeros(o, wanted)
    hidden = weights = inner = inner_bias = down = down_bias = inner_gradient = weighted = None
    with on_device_of(o.hidden):
        if wanted.kept:
            if kept is None:
                _, kept = inner_product(o, plan, activate=False, keep=True)
            inner_gradient, weighted, weights = _through_gate(o, plan, kept, upstream, wanted)
            del kept
        if weighted is not None:
            sides = [(upstream, True), (weighted, False)]
            down = _weight_gradient_of(o, plan, o.down, *(sides[::-1] if o.transposed else sides))
            del weighted, sides
        if wanted.inner and inner_gradient is not None:
            sides = [(inner_gradient, False), (o.hidden, True)]
            inner = _weight_gradient_of(o, plan, o.inner, *(sides[::-1] if o.transposed else sides))
            del sides
        if wanted.inner_bias and o.inner_bias is not None and inner_gradient is not None:
            inner_bias = _bias_gradient_of(o, plan, o.inner_bias, inner_gradient, by_token=False)
        if wanted.down_bias and o.down_bias is not None:
            down_bias = _bias_gradient_of(o, plan, o.down_bias, upstream, by_token=True)
        if wanted.hidden and inner_gradient is not None:
            expert, into, out = o.strides(o.inner)
            backwards = (expert, out, into)
            answers = rows_product(o, plan, inner_gradient, o.inner, backwards, None, None, o.hidden_size)
            del inner_gradient
            hidden = sum_choices(o, answers)
    return Gradients(hidden, weights, inner, inner_bias, down, down_bias)


def _zeros(o: Operands, wanted: Wanted) -> Gradients:
    """What no token teaches."""
    of = {name: getattr(o, name) for name, want in vars(wanted).items() if want}
    return Gradients(**{name: torch.zeros_like(tensor) for name, tensor in of.items()})


def _through_gate(
    o: Operands, plan: Plan, kept: torch.Tensor, upstream: torch.Tensor, wanted: Wanted
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradient of the first product and weighted activations, both by sorted row, and gradient of the weights."""
    inner_gradient = torch.empty_like(kept) if wanted.inner_product else None
    weighted = o.down.new_empty(o.selections, o.width) if wanted.down else None
    # A column for each program that has a share, and one for the bias.
    columns = -(-o.width // 16) + 1
    shares = o.down.new_empty(o.selections, columns, dtype=torch.float32) if wanted.weights else None
    expert, into, out = o.strides(o.down)
    constants = dict(
        HIDDEN=o.hidden_size,
        WIDTH=o.width,
        KIND=o.gate.kind,
        GATED=o.gate.gated,
        INTERLEAVED=o.gate.interleaved,
        **o.constants(plan, o.down.dtype),
    )
    blocks = _gate_gradient(
        # Wider, what the gate's derivative needs does not fit into registers.
        lambda: product_shapes(plan.tile_rows, o.down.dtype == torch.float32, widest=128),
        lambda meta: (plan.tiles * -(-o.width // meta["BLOCK_N"]),),
        (o.down.device, o.down.dtype, upstream.dtype, o.experts, expert, into, wanted),
        upstream,
        *upstream.stride(),
        o.down,
        expert,
        out,
        into,
        kept,
        o.weights,
        inner_gradient,
        weighted,
        shares,
        *o.rows(plan),
        o.index.shape[1],
        o.gate.alpha,
        o.gate.limit,
        columns,
        **constants,
    )
    if shares is None:
        return inner_gradient, weighted, None
    used = -(-o.width // blocks["BLOCK_N"])
    if o.down_bias is not None:
        backward_kernels.bias_products[(plan.tiles,)](
            upstream,
            *upstream.stride(),
            *bias_arguments(o.down_bias),
            shares,
            plan.order,
            plan.offsets,
            plan.tile_expert,
            plan.tile_row,
            o.experts,
            o.index.shape[1],
            columns,
            used,
            HIDDEN=o.hidden_size,
            BLOCK_M=plan.tile_rows,
            BLOCK=64,
        )
        used += 1
    gradient = shares[:, :used].sum(dim=1).view_as(o.weights)
    elsewhere = (o.index < 0) | (o.index >= o.experts)  # whose shares nobody wrote
    return inner_gradient, weighted, gradient.masked_fill_(elsewhere, 0).to(o.weights.dtype)


def _weight_gradient_of(
    o: Operands,
    plan: Plan,
    weight: torch.Tensor,
    left: tuple[torch.Tensor, bool],
    right: tuple[torch.Tensor, bool],
) -> torch.Tensor:
    """`[experts, left's columns, right's columns]`; a side is a tensor and whether it is held by token."""
    gradient = torch.empty_like(weight)
    rows, columns = gradient.shape[1:]
    average = o.selections // o.experts
    wide = weight.dtype == torch.float32
    _weight_gradient(
        lambda: gradient_shapes(wide),
        lambda meta: (o.experts * -(-rows // meta["BLOCK_I"]) * -(-columns // meta["BLOCK_J"]),),
        (weight.device, weight.dtype, left[0].dtype, right[0].dtype, o.experts, gradient.stride()),
        left[0],
        *left[0].stride(),
        right[0],
        *right[0].stride(),
        gradient,
        *gradient.stride(),
        plan.order,
        plan.offsets,
        o.index.shape[1],
        ROWS=rows,
        COLUMNS=columns,
        GATHER_LEFT=left[1],
        GATHER_RIGHT=right[1],
        PRECISION=precision_of(weight.dtype),
        BLOCK_R=gradient_depth(average, wide),
    )
    return gradient


def _bias_gradient_of(
    o: Operands, plan: Plan, bias: torch.Tensor, values: torch.Tensor, by_token: bool
) -> torch.Tensor:
    """`[experts, columns]`; rows held by token are weighted, since nobody has weighted them before."""
    gradient = torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    backward_kernels.bias_gradient[(o.experts, -(-bias.shape[1] // _BIAS_COLUMNS))](
        values,
        *values.stride(),
        o.weights if by_token else None,
        gradient,
        plan.order,
        plan.offsets,
        o.index.shape[1],
        COLUMNS=bias.shape[1],
        GATHER=by_token,
        BLOCK_R=32,
        BLOCK=_BIAS_COLUMNS,
    )
    return gradient

"""What a layer of experts computes with, and the arguments by which kernels are told of it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch

from ..gates import Gate
from .plan import Plan, buffer_size, plan_of
from .tuning import GROUP, INTERPRETED, tile_rows

Strides = tuple[int, int, int]


@dataclass(frozen=True)
class Operands:
    """`hidden` `[tokens, hidden]`; `index` and `weights` `[tokens, top_k]`, contiguous; the layer's tensors, gate and
    layout as in `ExpertsLayer`."""

    hidden: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    inner: torch.Tensor
    inner_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None
    gate: Gate
    transposed: bool

    @property
    def tokens(self) -> int:
        return self.hidden.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.hidden.shape[1]

    @property
    def selections(self) -> int:
        return self.index.numel()

    @property
    def experts(self) -> int:
        return self.inner.shape[0]

    @property
    def width(self) -> int:
        return self.down.shape[1 if self.transposed else 2]

    @property
    def inner_rows(self) -> int:
        return self.inner.shape[2 if self.transposed else 1]

    @property
    def tile_rows(self) -> int:
        return tile_rows(self.selections, self.experts)

    @property
    def plan_size(self) -> int:
        """Length of the plan's buffer."""
        return buffer_size(self.selections, self.experts, self.tile_rows)

    def plan(self) -> Plan:
        """The selections sorted by expert."""
        return plan_of(self.index.view(-1), self.experts, self.tile_rows)

    def plan_in(self, buffer: torch.Tensor) -> Plan:
        """The plan that a buffer holds."""
        return Plan(buffer, self.selections, self.experts, self.tile_rows)

    def strides(self, weight: torch.Tensor) -> Strides:
        """Strides of a weight as `[expert, in, out]`."""
        expert, first, second = weight.stride()
        return (expert, first, second) if self.transposed else (expert, second, first)

    def rows(self, plan: Plan | None) -> tuple[Any, ...]:
        """Arguments `order` to `experts`; without a plan, each selection is a tile and its own row."""
        if plan is None:
            return None, None, self.index, None, self.selections, self.experts
        return plan.order, plan.offsets, plan.tile_expert, plan.tile_row, plan.tiles, self.experts

    def constants(self, plan: Plan | None, dtype: torch.dtype) -> dict[str, Any]:
        """Constants of every product of tiles, whose weights are of this type."""
        rows = 16 if plan is None else plan.tile_rows
        return dict(PRECISION=precision_of(dtype), GROUP=GROUP, BLOCK_M=rows)


def bias_arguments(bias: torch.Tensor | None) -> tuple[Any, ...]:
    """A bias and its strides."""
    return (None, 0, 0) if bias is None else (bias, *bias.stride())


def precision_of(dtype: torch.dtype) -> str:
    """Triton's word for how PyTorch would multiply float32 now: as it is, or through tf32."""
    if dtype != torch.float32:
        return "ieee"
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return contextlib.nullcontext() if INTERPRETED else torch.cuda.device_of(tensor)

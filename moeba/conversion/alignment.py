"""Where tensors lie in memory, which decides how a processor's float32 products round.

A BLAS adds the numbers of a row in another order where the row begins off a boundary of its vector registers, and
the tensors of a mapped file begin anywhere. Two models compute the same bits where the same calls run on the same
shapes in memory that is aligned alike; torch's own allocations begin at multiples of `ALIGNMENT`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register

Model = TypeVar("Model", bound=nn.Module)


def is_aligned(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies as torch would have allocated it. Only the CPU's memory is looked at."""
    return tensor.device.type != "cpu" or (tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it where it does not lie so."""
    return tensor if is_aligned(tensor) else tensor.detach().clone(memory_format=torch.contiguous_format)


def align(model: Model) -> Model:
    """Give each parameter and buffer that is not aligned memory of its own, one at a time.

    What is aligned stays where it is, and what shares its memory with another goes on sharing it.
    """
    moved: dict[tuple[Any, ...], torch.Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if is_aligned(tensor):
            continue
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in moved:
            moved[place] = aligned(tensor.detach())
        tensor.data = moved[place]
    return model

"""Memory for the gradients of experts: large, written anew at every step, and zero where an expert had no tokens.

A fresh page costs more than the products that fill it. So the memory of a parameter's gradient is kept until the next
step and handed out again, if by then nobody holds it any more (`zero_grad(set_to_none=True)`, which is the default). It
goes when the parameter goes, or with `moeba.kernels.release_memory`.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..library.torch_internals import storage_holders

_BITS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
_ALIGNMENT = 64  # bytes: whole lines of the cache can be written without reading them first
_KEPT_FROM = 1 << 20  # bytes: below, memory comes from the heap anyway


def lazy_zeros(like: torch.Tensor) -> torch.Tensor:
    """Zeros of the shape, dtype and device of `like`, without gaps, rows or columns contiguous as they are there.

    On CPU they take neither memory nor time where they are never written: the gradient of experts without tokens.
    """
    if like.device.type != "cpu":
        return torch.zeros_like(like)
    if like.dim() > 1 and like.stride(-1) != 1 and like.stride(-2) == 1:
        return lazy_zeros(like.mT).mT
    size = like.element_size()
    padding = _ALIGNMENT // size
    memory = np.zeros(like.numel() + padding, _BITS[size])
    start = -memory.ctypes.data % _ALIGNMENT // size
    return torch.from_numpy(memory[start : start + like.numel()]).view(like.dtype).view(like.shape)


# By parameter: the memory of its gradient, and how many hold its storage while nobody else does.
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()
_lock = threading.Lock()


def gradient_memory(parameter: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Memory for the gradient of `parameter` `[experts, …]`, zero for the experts that are not `active` `[experts]`.

    What it holds for the active ones is undefined: all of it must be written.
    """
    if parameter.numel() * parameter.element_size() < _KEPT_FROM or not parameter.is_leaf:
        return lazy_zeros(parameter)
    with _lock:
        memory, holders = _kept.get(parameter, (None, 0))
        if memory is None or memory.shape != parameter.shape or memory.dtype != parameter.dtype:
            memory = lazy_zeros(parameter)
            _kept[parameter] = memory, storage_holders(memory)
        elif storage_holders(memory) > holders:
            return lazy_zeros(parameter)  # somebody still holds the last gradient
        else:
            # Anybody may have written to it, also where no trace is left (`.data`, compiled code).
            for expert in (~active).nonzero().flatten().tolist():
                memory[expert].zero_()
        return memory.detach()


def release_gradient_memory() -> None:
    """Give back what is kept for the next step's gradients and is not in use; the next step starts afresh."""
    with _lock:
        _kept.clear()

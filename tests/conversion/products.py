"""The matrix products that a model runs: which calls, on which shapes, and how their operands lie in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moeba.conversion.alignment import ALIGNMENT

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "_scaled_dot_product")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name.startswith(PRODUCTS):
            operands = (argument for argument in args if isinstance(argument, torch.Tensor))
            self.seen[(name, *map(placement, operands))] += 1
        return func(*args, **(kwargs or {}))


def placement(tensor: torch.Tensor) -> tuple:
    """Shape, dtype, strides of what has a second entry, and offset from an aligned address."""
    strides = tuple(step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    return tuple(tensor.shape), tensor.dtype, strides, tensor.data_ptr() % ALIGNMENT


def products_of(run: Callable[[], Any]) -> Counter[tuple]:
    """Every product of a run and how often; not their order, in which independent ones may change places."""
    with torch.no_grad(), _Recorder() as recorder:
        run()
    return recorder.seen

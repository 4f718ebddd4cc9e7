"""Tile shapes, and the choice among them: timed once for each kind of call, then remembered.

What decides the shape is how many rows an expert has on average, which is known without asking the device. `BLOCK_M`
follows from it, because the plan is cut by it; the other numbers are a kernel's own and are tuned. The best of a list
is kept on disk by Triton's cache where its version can (`cache_results`, Triton 3.3), and in this process in any case.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton

from .availability import interpreting
from .settings import settings

GROUP = 8
INTERPRETED = interpreting()
_CACHED = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}

# (columns of the product, depth, warps, stages) for 16-bit numbers, by rows of a tile. With 16 and 32 rows a product is
# bound by reading weights, so what counts is the bytes in flight; from 64 rows on by arithmetic.
Shape = tuple[int, int, int, int]
_SHAPES: dict[int, list[Shape]] = {
    16: [(64, 128, 4, 4), (32, 256, 4, 4), (32, 128, 4, 5), (128, 64, 4, 4), (64, 256, 8, 3)],
    32: [(64, 128, 4, 4), (128, 64, 4, 4), (128, 128, 4, 3), (64, 64, 4, 5)],
    64: [(128, 64, 4, 4), (256, 64, 8, 3), (128, 128, 4, 3), (128, 64, 8, 4)],
    128: [(256, 64, 8, 3), (128, 64, 8, 4), (256, 64, 8, 4), (128, 128, 8, 3)],
}
# The same for float32, whose tiles take twice the memory, and which without tf32 is multiplied by ordinary arithmetic.
_WIDE_SHAPES: dict[int, list[Shape]] = {
    16: [(32, 64, 4, 4), (64, 64, 4, 3), (32, 128, 4, 3)],
    32: [(64, 32, 4, 3), (64, 64, 4, 3)],
    64: [(64, 32, 4, 3), (128, 32, 8, 3)],
    128: [(64, 32, 8, 3), (128, 32, 8, 3)],
}
# (rows, columns, depth, warps, stages) of a tile of a weight's gradient, by the depth that the number of rows allows.
_GRADIENT_SHAPES = {
    False: [(128, 128, 8, 3), (128, 256, 8, 3), (128, 128, 4, 3), (64, 128, 4, 4)],
    True: [(64, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 3)],
}


def tile_rows(selections: int, experts: int) -> int:
    """`BLOCK_M`, for so many rows spread over so many experts."""
    if INTERPRETED:
        return 16
    average = selections / min(experts, max(selections, 1))
    return 16 if average <= 16 else 32 if average <= 48 else 64 if average <= 128 else 128


def product_shapes(
    rows: int, wide: bool, columns_a_number: int = 1, widest: int = 256
) -> list[triton.Config]:
    """Shapes for a product of float32 (`wide`) or 16-bit numbers, of at most `widest` columns.

    `columns_a_number`: 2 where gate and up make one number.
    """
    if INTERPRETED:
        return [triton.Config({"BLOCK_N": 32, "BLOCK_K": 32})]
    return [
        triton.Config({"BLOCK_N": n // columns_a_number, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
        for n, k, warps, stages in (_WIDE_SHAPES if wide else _SHAPES)[rows]
        if n <= widest
    ]


def gradient_shapes(wide: bool) -> list[triton.Config]:
    """Shapes for a weight's gradient."""
    if INTERPRETED:
        return [triton.Config({"BLOCK_I": 32, "BLOCK_J": 32})]
    return [
        triton.Config({"BLOCK_I": i, "BLOCK_J": j}, num_warps=warps, num_stages=stages)
        for i, j, warps, stages in _GRADIENT_SHAPES[wide]
    ]


def gradient_depth(average_rows: int, wide: bool) -> int:
    """`BLOCK_R`: how many rows a weight's gradient takes at a time."""
    return 16 if INTERPRETED else 32 if wide or average_rows <= 32 else 64


class Tuned:
    """A kernel that is launched with the best of a list of shapes.

    `told_by` names the arguments by which, beside constants and dtypes, calls are told apart on disk.
    """

    def __init__(self, kernel: Any, told_by: tuple[str, ...] = ()) -> None:
        self.kernel = kernel
        self.told_by = told_by
        self._best: dict[tuple[Any, ...], triton.Config] = {}

    def __call__(
        self,
        shapes: Callable[[], list[triton.Config]],
        grid: Callable[[dict[str, Any]], tuple[int, ...]],
        kind: tuple[Any, ...],
        *arguments: Any,
        **constants: Any,
    ) -> dict[str, int]:
        """Launch the kernel, and tell with which blocks.

        `shapes` lists what may be chosen, best guess first; `kind` tells apart, in this process, calls for which the
        choice may differ beyond their constants.
        """
        key = (kind, tuple(constants.values()))
        shape = self._best.get(key)
        if shape is None:
            choices = shapes()
            if _may_time(choices):
                tuner = triton.autotune(choices, key=[*constants, *self.told_by], **_CACHED)(self.kernel)
                tuner[grid](*arguments, **constants)
                self._best[key] = tuner.best_config
                return tuner.best_config.kwargs
            shape = choices[0]
        words = {} if INTERPRETED else dict(num_warps=shape.num_warps, num_stages=shape.num_stages)
        self.kernel[grid](*arguments, **constants, **shape.kwargs, **words)
        return shape.kwargs


def _may_time(choices: list[triton.Config]) -> bool:
    if INTERPRETED or len(choices) < 2 or not settings.autotune:
        return False
    return not torch.cuda.is_current_stream_capturing()

"""Small words that the kernels share.

Everything here and in the kernels is made of Triton's built-in operations: its library of functions (`tl.sum`,
`tl.zeros` …) is bound to the compiler or to the interpreter when Triton is imported, and so could not be used by
kernels that choose between the two when *they* are imported.
"""

# mypy: disallow-incomplete-defs=False
# Triton has no types for what kernels take and give.
from __future__ import annotations

import triton
import triton.language as tl

from ...library.triton_internals import sum_combine
from .availability import interpreting

INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def multiply_add(left, right, total, PRECISION: tl.constexpr):
    """`total + left @ right`, accumulated in float32."""
    if INTERPRETED:  # the interpreter holds bfloat16 as bits, and would multiply those
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def add_product(
    total,
    left_rows,
    left_stride,
    weight_columns,
    weight_stride,
    inside,
    DEPTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`total` `[M, N]` `+ left @ weights`, summed over `DEPTH`, in the weights' dtype.

    `left_rows` `[M, 1]` and `weight_columns` `[1, N]` point at where each begins, `inside` `[N]` says which columns
    exist, `WHOLE` that all do.
    """
    for start in range(0, DEPTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = left_rows + k[None, :] * left_stride
        w = weight_columns + k[:, None] * weight_stride
        if DEPTH % BLOCK_K == 0:
            left = tl.load(x)
        else:
            left = tl.load(x, mask=(k < DEPTH)[None, :], other=0.0)
        if DEPTH % BLOCK_K == 0 and WHOLE:
            right = tl.load(w)
        else:
            right = tl.load(w, mask=(k < DEPTH)[:, None] & inside[None, :], other=0.0)
        total = multiply_add(left.to(right.dtype), right, total, PRECISION)
    return total


@triton.jit
def summed(values, AXIS: tl.constexpr):
    """Sum along one axis, always in the same order."""
    return tl.reduce(values, AXIS, sum_combine)


@triton.jit
def running_sum(values):
    """`values[0] + … + values[i]` for each i."""
    return tl.associative_scan(values, 0, sum_combine)


@triton.jit
def place(tiles, columns, GROUP: tl.constexpr):
    """The row tile and the column tile of this program.

    Programs that run together share few row tiles and few column tiles, so that both stay in the cache: neighbouring
    row tiles are mostly one expert's, whose weights are then read from memory once.
    """
    program = tl.program_id(0)
    width = GROUP * columns
    first = (program // width) * GROUP
    height = tl.minimum(tiles - first, GROUP)
    inside = program % width
    return first + inside % height, inside // height


@triton.jit
def rows_of(tile, expert, tile_row, offsets, BLOCK_M: tl.constexpr, DIRECT: tl.constexpr):
    """Sorted rows of a tile, which of them exist, and the same rows with those that do not replaced by a real one."""
    if DIRECT:
        first = tile
        end = tile + 1
    else:
        first = tl.load(tile_row + tile)
        end = tl.load(offsets + expert + 1)
    rows = first + tl.arange(0, BLOCK_M)
    return rows, rows < end, tl.minimum(rows, end - 1)


@triton.jit
def selections_of(rows, order, DIRECT: tl.constexpr):
    """The selection (token * top_k + choice) that each sorted row holds."""
    if DIRECT:
        selections = rows
    else:
        selections = tl.load(order + rows)
    return selections


@triton.jit
def halves(pairs, M: tl.constexpr, N: tl.constexpr, STACKED: tl.constexpr):
    """Gate and up `[M, N]` of `[M, 2N]`: one block beside the other if `STACKED`, else in alternating columns."""
    if STACKED:
        gate, up = tl.split(tl.permute(tl.reshape(pairs, (M, 2, N)), (0, 2, 1)))
    else:
        gate, up = tl.split(tl.reshape(pairs, (M, N, 2)))
    return gate, up

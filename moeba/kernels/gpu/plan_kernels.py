"""The kernel that sorts selections by expert and cuts each expert's rows into tiles, without asking the host."""

# mypy: disallow-incomplete-defs=False
# Triton has no types for what kernels take and give.
from __future__ import annotations

import triton
import triton.language as tl

from ...library.triton_internals import elementwise_max
from .language import running_sum, summed


@triton.jit
def _key(index, selections, count, experts):
    """The expert of a selection; `experts` if it lives elsewhere, one more beyond the end."""
    real = selections < count
    expert = tl.load(index + selections, mask=real, other=0)
    expert = tl.where((expert < 0) | (expert > experts), experts, expert).to(tl.int32)
    return tl.where(real, expert, experts + 1)


@triton.jit
def _first_of(sorted_keys, experts_wanted, count, steps):
    """For each expert, how many of the sorted keys are smaller: a binary search for all experts at once."""
    low = experts_wanted * 0
    high = low + count
    for _ in range(0, steps):
        middle = (low + high) // 2
        open_ = low < high
        smaller = open_ & (tl.load(sorted_keys + middle, mask=open_, other=0).to(tl.int32) < experts_wanted)
        low = tl.where(smaller, middle + 1, low)
        high = tl.where(open_ & (smaller == 0), middle, high)
    return low


@triton.jit(do_not_specialize=["count", "steps", "tiles", "rank_programs"])
def make_plan(
    index,
    sorted_keys,
    order,
    offsets,
    tile_expert,
    tile_row,
    count,
    steps,
    experts,
    tiles,
    rank_programs,
    TILE_ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    COUNTED: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Programs before `rank_programs` place selections, each by counting those that come before it; the one after
    writes where each expert begins, and its tiles. With `sorted_keys`, `order` is there already."""
    if tl.program_id(0) < rank_programs:
        mine = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
        key = _key(index, mine, count, experts)
        position = mine * 0
        for start in range(0, count, BLOCK_S):
            others = start + tl.arange(0, BLOCK_S)
            other_key = _key(index, others, count, experts)
            before = other_key[None, :] < key[:, None]
            before |= (other_key[None, :] == key[:, None]) & (others[None, :] < mine[:, None])
            position += summed(before.to(tl.int32), 1)
        tl.store(order + position, mine, mask=mine < count)
        return

    expert = tl.arange(0, BLOCK_E)
    if sorted_keys is not None:
        begin = _first_of(sorted_keys, expert, count, steps)
        end = _first_of(sorted_keys, expert + 1, count, steps)
    else:
        amount = expert * 0
        for start in range(0, count, COUNTED):
            keys = _key(index, start + tl.arange(0, COUNTED), count, experts)
            amount += tl.histogram(tl.minimum(keys, experts), BLOCK_E)
        end = running_sum(amount)
        begin = end - amount
    tl.store(offsets + expert, begin, mask=expert <= experts)

    amount = tl.where(expert < experts, (end - begin + TILE_ROWS - 1) // TILE_ROWS, 0)
    after = running_sum(amount)
    most = tl.reduce(amount, 0, elementwise_max)
    for number in range(0, most):
        here = number < amount
        slot = after - amount + number
        tl.store(tile_expert + slot, expert, mask=here)
        tl.store(tile_row + slot, begin + number * TILE_ROWS, mask=here)
    used = summed(amount, 0)
    for start in range(0, tiles, BLOCK_E):
        slot = start + expert
        tl.store(tile_expert + slot, experts, mask=(slot >= used) & (slot < tiles))

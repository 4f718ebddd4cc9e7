"""Which rows belong to which expert, on the device: nothing here waits for it.

Sizes that depend on the routing are never read by the host. Buffers and grids have the sizes that any routing of as
many tokens could need, so that a CUDA graph captures them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from .plan_kernels import make_plan

# Up to so many selections, each is placed by comparing it to all others, in one launch; above, by sorting.
RANKED = 4096
BLOCK = 64


@dataclass(frozen=True)
class Plan:
    """`selections` (token * top_k + choice) sorted by expert, and tiles of `tile_rows` rows of one expert each.

    `buffer` is int32 and holds, one after the other: `order` `[selections]`, the selection of each sorted row;
    `offsets` `[experts + 1]`, where each expert begins; `tile_expert` and `tile_row` `[tiles]`, the expert and the
    first row of each tile, with the expert `experts` for a tile that this routing does not need.
    """

    buffer: torch.Tensor
    selections: int
    experts: int
    tile_rows: int

    @cached_property
    def tiles(self) -> int:
        return tiles_needed(self.selections, self.experts, self.tile_rows)

    @property
    def order(self) -> torch.Tensor:
        return self.buffer

    @cached_property
    def offsets(self) -> torch.Tensor:
        return self.buffer[_aligned(self.selections) :]

    @cached_property
    def tile_expert(self) -> torch.Tensor:
        return self.offsets[_aligned(self.experts + 1) :]

    @cached_property
    def tile_row(self) -> torch.Tensor:
        return self.tile_expert[_aligned(self.tiles) :]


def _aligned(numbers: int) -> int:
    """Room for so many int32 that the next part starts at a multiple of 16 bytes."""
    return -(-numbers // 4) * 4


def tiles_needed(selections: int, experts: int, tile_rows: int) -> int:
    """The most tiles that any routing needs: every expert may leave one tile unfilled."""
    return selections // tile_rows + min(experts, selections)


def buffer_size(selections: int, experts: int, tile_rows: int) -> int:
    """Length of `Plan.buffer`."""
    tiles = tiles_needed(selections, experts, tile_rows)
    return _aligned(selections) + _aligned(experts + 1) + 2 * _aligned(tiles)


def plan_of(index: torch.Tensor, experts: int, tile_rows: int) -> Plan:
    """Sort `index` `[selections]`; numbers that are no expert's (sentinels) are sorted behind all experts."""
    count = index.numel()
    size = buffer_size(count, experts, tile_rows)
    plan = Plan(torch.empty(size, dtype=torch.int32, device=index.device), count, experts, tile_rows)
    keys = None
    if count > RANKED:
        # Fewer bits are sorted in fewer passes.
        width = torch.uint8 if experts < 256 else torch.int16 if experts < 2**15 else torch.int32
        elsewhere = (index < 0) | (index > experts)
        keys, order = index.masked_fill(elsewhere, experts).to(width).sort(stable=True)
        plan.order[:count].copy_(order)
    rank_programs = 0 if keys is not None else -(-count // BLOCK)
    make_plan[(rank_programs + 1,)](
        index,
        keys,
        plan.order,
        plan.offsets,
        plan.tile_expert,
        plan.tile_row,
        count,
        count.bit_length(),
        experts,
        plan.tiles,
        rank_programs,
        TILE_ROWS=tile_rows,
        BLOCK_S=BLOCK,
        COUNTED=1024,
        BLOCK_E=max(32, 1 << experts.bit_length()),  # room for the experts and one more
        num_warps=8 if experts >= 512 else 4,
    )
    return plan

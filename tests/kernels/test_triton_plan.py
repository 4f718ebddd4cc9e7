"""The sorting of selections on the device: stable, and every row of every expert in exactly one tile."""

from __future__ import annotations

import pytest
import torch
from triton_case import DEVICE


@pytest.fixture
def plan_of(monkeypatch):
    """`plan_of(index, experts, tile_rows)`, from kernels that are loaded here."""
    pytest.importorskip("triton")
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    from moeba.kernels.gpu import plan

    return plan.plan_of


@pytest.mark.parametrize("ranked", [True, False], ids=["ranked", "sorted"])
@pytest.mark.parametrize(
    "selections, experts, tile_rows",
    [(1, 1, 16), (16, 3, 16), (130, 5, 16), (77, 130, 16), (65, 31, 64), (150, 256, 32)],
)
def test_plan(selections, experts, tile_rows, ranked, plan_of, monkeypatch):
    if not ranked:
        monkeypatch.setattr("moeba.kernels.gpu.plan.RANKED", 0)
    # Skewed, so that experts with several tiles and without any occur; from -1, which is no expert, to two sentinels.
    generator = torch.Generator().manual_seed(selections)
    index = (torch.rand(selections, generator=generator) ** 3 * (experts + 3)).long() - 1
    plan = plan_of(index.to(DEVICE), experts, tile_rows)
    order, offsets, tile_expert, tile_row = (
        part.tolist() for part in (plan.order, plan.offsets, plan.tile_expert, plan.tile_row)
    )

    wanted = [[n for n, chosen in enumerate(index.tolist()) if chosen == expert] for expert in range(experts)]
    assert [
        order[begin:end] for begin, end in zip(offsets[:experts], offsets[1 : experts + 1], strict=True)
    ] == wanted
    tiles = [
        (expert, row)
        for expert, row in zip(tile_expert[: plan.tiles], tile_row, strict=False)
        if expert != experts
    ]
    assert tiles == [
        (expert, row)
        for expert in range(experts)
        for row in range(offsets[expert], offsets[expert + 1], tile_rows)
    ]


def test_tiles_suffice_for_the_most_uneven_routing(plan_of):
    """Every expert has one row, and one has all that are left: each leaves a tile nearly empty."""
    index = torch.cat((torch.arange(7), torch.zeros(16 * 3 + 1, dtype=torch.int64)))
    plan = plan_of(index.to(DEVICE), 7, 16)
    assert int((plan.tile_expert[: plan.tiles] < 7).sum()) == 7 + 3 <= plan.tiles

"""Selections sorted by expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Routing:
    """Selections (token * top_k + choice) that this device's experts answer, sorted by expert.

    `order` `[selections]`; `tokens` `[selections]`, the token of each; `counts`, how many each expert has.
    """

    order: torch.Tensor
    tokens: torch.Tensor
    counts: list[int]


def sort_by_expert(index: torch.Tensor, num_experts: int) -> Routing:
    """Sort `index` `[tokens, top_k]`; an index of `num_experts` or more lives on another device and is left out.

    Raises:
        ValueError: an index is negative.
    """
    flat = index.reshape(-1)
    ranked, order = flat.sort(stable=True)
    if ranked[:1].lt(0).any():
        raise ValueError("top_k_index holds a negative expert index")
    counts = torch.bincount(flat.clamp(max=num_experts), minlength=num_experts + 1).tolist()
    order = order[: order.numel() - counts.pop()]
    return Routing(order, order // index.shape[-1], counts)

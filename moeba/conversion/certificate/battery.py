"""Inputs chosen from the config, so that every feature in use has a chance to show."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...configuration import MoebaConfig
from ...configuration.model_facts import each_rope


@dataclass(frozen=True)
class Battery:
    """Token ids for each comparison, `[2, length]` each, and the positions of a few tokens far from the beginning."""

    inputs: tuple[torch.Tensor, ...]
    far: torch.Tensor | None

    @property
    def lengths(self) -> list[int]:
        return [ids.shape[1] for ids in self.inputs]

    @property
    def longest(self) -> torch.Tensor:
        return self.inputs[-1]


def turns(config: MoebaConfig) -> list[int]:
    """The positions from which on rope turns by other angles, or queries grow: other types do so from the first on."""
    found = []
    for rope in each_rope(config):
        original = rope.get("original_max_position_embeddings", config.max_position_embeddings)
        if rope["rope_type"] == "dynamic":  # which has no other limit
            found.append(config.max_position_embeddings)
        elif rope["rope_type"] == "longrope" or config.query_growth_beta:
            found.append(original)
    return found


def build_battery(config: MoebaConfig, limit: int, seed: int = 0) -> Battery:
    """One token, a few, and enough to pass every window and every turn of rope, up to `limit` tokens."""
    rope_turns = turns(config)
    needs = [turn + 1 for turn in rope_turns]
    if config.sliding_window is not None:
        needs.append(config.sliding_window + 1)
    longest = max([24, *(length + 8 for length in needs)])
    if config.position_embedding_type != "rope":  # a table of positions ends there
        limit = min(limit, config.max_position_embeddings)
    longest = min(longest, limit)
    generator = torch.Generator().manual_seed(seed)
    inputs = tuple(
        torch.randint(0, config.vocab_size, (2, length), generator=generator)
        for length in sorted({1, min(7, longest), longest})
    )
    few = min(7, longest)
    # Behind every turn, or at the last positions: a stock model may hold a table of no more.
    start = max(rope_turns) + 1 if rope_turns else max(config.max_position_embeddings - few, 0)
    far = torch.arange(start, start + few).expand(2, -1)
    return Battery(inputs, far if config.position_embedding_type == "rope" else None)

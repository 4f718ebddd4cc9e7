"""Inputs chosen from the config, so that every feature in use has a chance to show."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...configuration import MoebaConfig
from ...configuration.model_facts import rope_of


@dataclass(frozen=True)
class Battery:
    """Token ids for each comparison; `[2, length]` each."""

    lengths: tuple[int, ...]
    inputs: tuple[torch.Tensor, ...]
    covers: tuple[str, ...]

    @property
    def longest(self) -> torch.Tensor:
        return self.inputs[-1]


def reach(config: MoebaConfig) -> dict[str, int]:
    """Sequence lengths that a feature needs before it changes anything."""
    found = {}
    if config.sliding_window is not None:
        found["sliding window"] = config.sliding_window + 1
    rope = rope_of(config)
    for parameters in rope.values() if any(isinstance(value, dict) for value in rope.values()) else (rope,):
        if parameters and parameters.get("rope_type") not in (None, "default"):
            original = config.max_position_embeddings
            if parameters["rope_type"] != "dynamic":  # which has no other limit
                original = parameters.get("original_max_position_embeddings", original)
            found[f"{parameters['rope_type']} rope"] = original + 1
        if parameters and config.query_growth_beta:
            found["growing queries"] = parameters["original_max_position_embeddings"] + 1
    return found


def build_battery(config: MoebaConfig, limit: int, seed: int = 0) -> Battery:
    """One token, a few, and enough to pass every window and original context, up to `limit` tokens."""
    needs = reach(config)
    longest = max([24, *(length + 8 for length in needs.values())])
    if config.position_embedding_type != "rope":  # a table of positions ends there
        limit = min(limit, config.max_position_embeddings)
    longest = min(longest, limit)
    lengths = tuple(sorted({1, min(7, longest), longest}))
    generator = torch.Generator().manual_seed(seed)
    inputs = tuple(
        torch.randint(0, config.vocab_size, (2, length), generator=generator) for length in lengths
    )
    return Battery(lengths, inputs, tuple(name for name, length in needs.items() if length <= longest))

"""What the experts of each layer do on text: how many tokens visit them, and how much they add there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..running.sources import Source
from ..running.streaming import load_feed_forward
from ..running.texts import observe_feed_forwards


@dataclass(frozen=True)
class Usage:
    """Of one layer.

    Attributes:
        loads: the share of all visits that each expert gets, `[experts]`.
        saliency: REAP (Lasby et al. 2025): the mean, over the tokens that visit an expert, of its renormalised weight
            times the length of its answer, `[experts]`; 0 for one that no token visits. None if not asked for.
        total_weight: what the weights of a token's experts add up to, on average.
    """

    loads: torch.Tensor
    saliency: torch.Tensor | None
    total_weight: float


def observe_experts(source: Source, ids: torch.Tensor, saliency: bool = False) -> Mapping[int, Usage]:
    """Run the model over `ids` `[windows, length]`, one layer in memory at a time, and watch its sparse layers."""
    config = source.config
    found: dict[int, Usage] = {}

    def observe(layer: int, inputs: torch.Tensor) -> None:
        block: Any = load_feed_forward(config, source.tensors, layer)
        _, weights, indices = block.gate(inputs)
        experts = block.gate.num_experts
        visits = torch.bincount(indices.flatten(), minlength=experts).double()
        found[layer] = Usage(
            loads=visits / visits.sum(),
            saliency=_saliency(block.experts, inputs, weights, indices, visits) if saliency else None,
            total_weight=weights.double().sum(dim=-1).mean().item(),
        )

    observe_feed_forwards(source.model(), ids, config.sparse_layers, observe)
    return found


def _saliency(
    experts: Any, inputs: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor, visits: torch.Tensor
) -> torch.Tensor:
    """REAP's `S[e] = mean over the tokens x that visit e of g[e](x) * |f[e](x)|`, `[experts]`.

    Here g are a token's weights, made to sum to 1, and `|f|` is the Euclidean length of an expert's own answer.

    Args:
        inputs: `[tokens, hidden]`. weights, indices: `[tokens, top_k]`. visits: `[experts]`.
    """
    shares = (weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-30)).double()
    sums = torch.zeros_like(visits)
    for expert in visits.nonzero().flatten().tolist():
        tokens, position = torch.where(indices == expert)
        alone = torch.full((len(tokens), 1), expert)
        answers = experts(inputs[tokens], alone, torch.ones(len(tokens), 1))
        sums[expert] = (shares[tokens, position] * answers.double().norm(dim=-1)).sum()
    return sums / visits.clamp(min=1)

"""Whether each token visits one expert of each part of a feed-forward that was cut up."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...configuration import MoebaConfig
from ...conversion.certificate import Check, Status
from ...conversion.checkpoint import TensorSource
from .routing_integrity import shares_by_dtype


def integrity(
    granularity: int, config: MoebaConfig, tensors: TensorSource
) -> tuple[list[Check], dict[str, Any]]:
    """The share of tokens whose experts hold every part equally often, in float32 and in the stored dtype.

    Experts of one whole have the same router row, so float32 keeps them together. In half precision the scores of two
    wholes may tie, and top-k then mixes them: that share is reported and decides nothing.
    """

    def whole(layer: int, indices: torch.Tensor) -> torch.Tensor:
        parts = nn.functional.one_hot(indices % granularity, granularity).sum(dim=1)
        return (parts == config.num_experts_per_tok // granularity).all(dim=-1)

    shares = shares_by_dtype(config, tensors, whole)
    status: Status = "verified" if shares["float32"] == 1.0 else "failed"
    detail = f"tokens that visit one expert of each of {granularity} parts"
    figures = {"granularity": granularity, **shares}
    return [Check("virtual groups", status, figures, detail, "checkpoint")], {"virtual_groups": figures}

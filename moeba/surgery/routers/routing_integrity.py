"""Whether tokens visit experts in the company that they must have: all copies of one, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ...configuration import MoebaConfig
from ...conversion.certificate import Check, Status
from ...conversion.checkpoint import TensorSource
from ..running.streaming import streamed_model
from ..running.texts import random_windows


def copies_stay_together(
    orders: Mapping[int, Sequence[int]], config: MoebaConfig, tensors: TensorSource
) -> tuple[list[Check], dict[str, Any]]:
    """The share of tokens that visit each expert in all its copies or in none, in float32 and in the stored dtype.

    Copies have the same router row, so float32 keeps them together. In half precision the scores of two experts may
    tie where top-k ends, and it then takes some copies of each: that share is reported and decides nothing.

    Args:
        orders: for each sparse layer, which expert each one is a copy of.
    """

    def together(layer: int, indices: torch.Tensor) -> torch.Tensor:
        order = torch.tensor(orders[layer])
        copies = torch.bincount(order)[0]
        visits = nn.functional.one_hot(order[indices], int(order.max()) + 1).sum(dim=1)
        return ((visits == 0) | (visits == copies)).all(dim=-1)

    shares = shares_by_dtype(config, tensors, together)
    status: Status = "verified" if shares["float32"] == 1.0 else "failed"
    detail = "tokens that visit an expert in all its copies or in none"
    return [Check("copies", status, shares, detail, "checkpoint")], {"copies_stay_together": shares}


def shares_by_dtype(
    config: MoebaConfig, tensors: TensorSource, judge: Callable[[int, torch.Tensor], torch.Tensor]
) -> dict[str, float]:
    """The share of tokens, over all layers, that pass: in float32, and in the dtype that experts are stored in.

    Args:
        judge: `(layer, [tokens, top_k] chosen experts) -> [tokens]`, whether each token passes.
    """
    ids = random_windows(config.vocab_size, config.max_position_embeddings)
    stored = next(info.dtype for name, info in tensors.tensors.items() if name.endswith("experts.down_proj"))
    return {
        str(dtype).removeprefix("torch."): _share(config, tensors, ids, dtype, judge)
        for dtype in dict.fromkeys((torch.float32, stored))
    }


def _share(
    config: MoebaConfig,
    tensors: TensorSource,
    ids: torch.Tensor,
    dtype: torch.dtype,
    judge: Callable[[int, torch.Tensor], torch.Tensor],
) -> float:
    model = streamed_model(config, tensors, dtype)
    passed: list[torch.Tensor] = []

    def record(layer: int, module: nn.Module, args: Any, output: Any) -> None:
        passed.append(judge(layer, output[2]))

    for layer in config.sparse_layers:
        gate: Any = model.model.layers[layer].mlp.gate
        gate.register_forward_hook(partial(record, layer))
    with torch.no_grad():
        model.model(ids, use_cache=False)
    return torch.cat(passed).double().mean().item()

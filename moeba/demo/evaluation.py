"""How well a language model predicts held-out text: one measure for every model of the demo."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

BATCH = 8


@torch.no_grad()
def perplexity(model: nn.Module, windows: Sequence[Sequence[int]]) -> float:
    """exp of the mean negative log-likelihood over all predicted tokens of windows that do not overlap.

    The first token of a window has nothing before it and is not predicted. Every token weighs the same.

    Args:
        windows: token ids, all windows of one length of at least 2.
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(windows), BATCH):
        batch = torch.tensor(windows[start : start + BATCH])
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        losses = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        total += losses.double().sum().item()
        count += losses.numel()
    model.train(was_training)
    return math.exp(total / count)

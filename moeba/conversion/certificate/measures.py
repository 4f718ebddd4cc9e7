"""How far two tensors are apart. What is no finite number is infinitely far from anything, itself included."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

# A spread below this share of the values' size is what rounding leaves of none.
_NO_SPREAD = 1e-12


def difference(
    a: torch.Tensor, b: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor] = torch.max
) -> float:
    """The largest (or as `reduce` says) absolute difference."""
    return _or_infinity(reduce((a - b).abs()).item())


def share(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference as a share of the standard deviation of `a`; in absolute terms where that has none."""
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return math.inf
    worst = difference(a, b)
    return worst / spread if (spread := spread_of(a)) else worst


def spread_of(values: torch.Tensor) -> float:
    """Their standard deviation, or 0 where they are all the same or too few to have one."""
    spread = values.std().item() if values.numel() > 1 else 0.0
    return spread if spread > _NO_SPREAD * max(1.0, values.abs().max().item()) else 0.0


def largest(values: torch.Tensor) -> float:
    """The largest value, infinite if one is no number."""
    return _or_infinity(values.max().item())


def oddity(source: torch.Tensor, target: torch.Tensor) -> str:
    """Why logits are no usual evidence, in words; empty where they are."""
    for side, values in (("source", source), ("target", target)):
        if not bool(torch.isfinite(values).all()):
            return f"the {side}'s logits are not finite"
    return "" if spread_of(source) else "the source's logits have no spread: compared in absolute terms"


def _or_infinity(value: float) -> float:
    return math.inf if math.isnan(value) else value

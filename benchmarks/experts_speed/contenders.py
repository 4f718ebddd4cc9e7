"""The implementations that transformers knows by name, and those that a work would drown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import moeba  # noqa: F401  registers the implementation

from .cells import OURS, REST
from .models import Routes, sizes_of

GATHER_LIMIT = 3e9  # bytes of weights that batched_mm may copy for one layer
ZEROS_LIMIT = 6e10  # bytes of zeros that eager may write in one training step: half a minute on two cores


def answer_at_once(
    self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Experts that do nothing: what the model takes without its experts."""
    return hidden_states.clone()


ALL_EXPERTS_FUNCTIONS.register(REST, answer_at_once)


def implementations() -> list[str]:
    """Eager first, as what the others must equal; moeba last, where it is registered."""
    names = set(ALL_EXPERTS_FUNCTIONS.keys()) - {"eager", OURS, REST}
    return ["eager", *sorted(names), *([OURS] if OURS in ALL_EXPERTS_FUNCTIONS else [])]


def obstacle(
    name: str, experts: Sequence[nn.Module], routes: Routes, training: bool, zeros_limit: float = ZEROS_LIMIT
) -> str | None:
    """Why a work is not even tried, or None."""
    if name == "batched_mm":
        gathered = max(
            call.index.numel() * weight_bytes(module) / module.num_experts
            for module, calls in zip(experts, routes, strict=True)
            for call in calls
        )
        if gathered > GATHER_LIMIT:
            return f"not tried: would copy {gathered / 1e9:.0f} GB of weights in a layer"
    if name == "eager" and training:
        zeros = sum(
            calls[0].distinct * weight_bytes(module) for module, calls in zip(experts, routes, strict=True)
        )
        if zeros > zeros_limit:
            return (
                f"not tried: would write {zeros / 1e9:.0f} GB of zeros (a gradient of all experts for each)"
            )
    return None


def weight_bytes(experts: nn.Module) -> int:
    hidden, width = sizes_of(experts)
    matrices = 3 if experts.has_gate else 2
    return experts.num_experts * matrices * hidden * width * experts.down_proj.element_size()

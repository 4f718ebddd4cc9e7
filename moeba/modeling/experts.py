"""Experts: many feed-forwards held as three-dimensional tensors, of which each token visits a few.

The `forward` here is the plain reference: a loop over the experts that got tokens. transformers' experts
interface swaps in a faster computation by name: `experts_implementation="grouped_mm"`, `"batched_mm"`, or any
that was registered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation

from ..configuration.configuration_moeba import MoebaConfig


def loop_over_experts(
    num_experts: int,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    expert: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Sum of `weight * expert(token)` over the experts that each token chose.

    Args:
        hidden_states: `[tokens, hidden]`. top_k_index, top_k_weights: `[tokens, top_k]`; an index of
            `num_experts` is the sentinel of expert parallelism: that choice lives on another device.
        expert: `(index, [n, hidden]) -> [n, hidden]`.
    """
    output = torch.zeros_like(hidden_states)
    for index in top_k_index.unique().tolist():
        if index == num_experts:
            continue
        position, token = torch.where(index == top_k_index.T)
        answer = expert(index, hidden_states[token]) * top_k_weights[token, position, None]
        output.index_add_(0, token, answer.to(output.dtype))
    return output


@use_experts_implementation
class MoebaExperts(nn.Module):
    """Gated: `gate_up_proj` `[experts, 2 * width, hidden]`, `down_proj` `[experts, hidden, width]`."""

    def __init__(self, config: MoebaConfig, num_experts: int, intermediate_size: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, config.hidden_size, intermediate_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """`[tokens, hidden]` in and out."""

        def expert(index: int, tokens: torch.Tensor) -> torch.Tensor:
            return F.linear(
                self._apply_gate(F.linear(tokens, self.gate_up_proj[index])), self.down_proj[index]
            )

        return loop_over_experts(self.num_experts, hidden_states, top_k_index, top_k_weights, expert)


@use_experts_implementation(has_bias=True)
class MoebaBiasedExperts(nn.Module):
    """Gated experts with `gate_up_proj_bias` `[experts, 2 * width]`, `down_proj_bias` `[experts, hidden]`"""

    def __init__(self, config: MoebaConfig, num_experts: int, intermediate_size: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, config.hidden_size))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, config.hidden_size, intermediate_size))
        self.down_proj_bias = nn.Parameter(torch.empty(num_experts, config.hidden_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """`[tokens, hidden]` in and out."""

        def expert(index: int, tokens: torch.Tensor) -> torch.Tensor:
            inner = F.linear(tokens, self.gate_up_proj[index], self.gate_up_proj_bias[index])
            return F.linear(self._apply_gate(inner), self.down_proj[index], self.down_proj_bias[index])

        return loop_over_experts(self.num_experts, hidden_states, top_k_index, top_k_weights, expert)


@use_experts_implementation(has_gate=False)
class MoebaUngatedExperts(nn.Module):
    """Plain experts: `up_proj` `[experts, width, hidden]`, `down_proj` `[experts, hidden, width]`."""

    def __init__(self, config: MoebaConfig, num_experts: int, intermediate_size: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.up_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, config.hidden_size, intermediate_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """`[tokens, hidden]` in and out."""

        def expert(index: int, tokens: torch.Tensor) -> torch.Tensor:
            return F.linear(self.act_fn(F.linear(tokens, self.up_proj[index])), self.down_proj[index])

        return loop_over_experts(self.num_experts, hidden_states, top_k_index, top_k_weights, expert)


@use_experts_implementation(has_gate=False, has_bias=True)
class MoebaUngatedBiasedExperts(nn.Module):
    """Plain experts with biases `up_proj_bias` `[experts, width]`, `down_proj_bias` `[experts, hidden]`."""

    def __init__(self, config: MoebaConfig, num_experts: int, intermediate_size: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.up_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, config.hidden_size))
        self.up_proj_bias = nn.Parameter(torch.empty(num_experts, intermediate_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, config.hidden_size, intermediate_size))
        self.down_proj_bias = nn.Parameter(torch.empty(num_experts, config.hidden_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """`[tokens, hidden]` in and out."""

        def expert(index: int, tokens: torch.Tensor) -> torch.Tensor:
            inner = F.linear(tokens, self.up_proj[index], self.up_proj_bias[index])
            return F.linear(self.act_fn(inner), self.down_proj[index], self.down_proj_bias[index])

        return loop_over_experts(self.num_experts, hidden_states, top_k_index, top_k_weights, expert)


# By (feed_forward_type, expert_bias): the interface wants these two facts fixed for each class.
EXPERTS: dict[tuple[str, bool], type[nn.Module]] = {
    ("gated", False): MoebaExperts,
    ("gated", True): MoebaBiasedExperts,
    ("mlp", False): MoebaUngatedExperts,
    ("mlp", True): MoebaUngatedBiasedExperts,
}


def build_experts(config: MoebaConfig, num_experts: int, intermediate_size: int) -> nn.Module:
    """The experts of one layer. `config` is the model's own: at each call it names the implementation."""
    return EXPERTS[config.feed_forward_type, config.expert_bias](config, num_experts, intermediate_size)

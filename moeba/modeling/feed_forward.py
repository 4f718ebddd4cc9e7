"""Feed-forward: what each token does with what it has read, dense or through a few of many experts."""

from __future__ import annotations

import torch
from torch import nn

from ..configuration.configuration_moeba import MoebaConfig
from ..configuration.model_facts import layer_view
from .activations import build_activation
from .balancing import RouterLosses
from .experts import ClampedGate, build_experts
from .norms import build_norm
from .router import ROUTERS, SCORES


class MoebaMLP(nn.Module):
    """`down(act(up(x)))` (Vaswani et al. 2017)."""

    def __init__(self, config: MoebaConfig, intermediate_size: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = build_activation(config.hidden_act)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class MoebaGatedMLP(MoebaMLP):
    """`down(act(gate(x)) * up(x))` (Shazeer 2020)."""

    def __init__(self, config: MoebaConfig, intermediate_size: int) -> None:
        super().__init__(config, intermediate_size)
        self.gate_proj = nn.Linear(config.hidden_size, intermediate_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class MoebaClampedGatedMLP(MoebaGatedMLP):
    """A gated feed-forward with GPT-OSS's `ClampedGate`."""

    def __init__(self, config: MoebaConfig, intermediate_size: int) -> None:
        super().__init__(config, intermediate_size)
        self.apply_gate = ClampedGate(config.swiglu_alpha, config.swiglu_limit)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.apply_gate(self.gate_proj(hidden_states), self.up_proj(hidden_states)))


FEED_FORWARDS: dict[str, type[MoebaMLP]] = {
    "mlp": MoebaMLP,
    "gated": MoebaGatedMLP,
    "clamped_gated": MoebaClampedGatedMLP,
}


class MoebaSparseMoeBlock(nn.Module):
    """A router sends each token to a few experts; an optional shared expert sees every token."""

    def __init__(self, config: MoebaConfig, layer_idx: int) -> None:
        super().__init__()
        layer = layer_view(config, layer_idx)
        self.config = config
        self.jitter_noise = config.router_jitter_noise
        self.jitter_draws = config.router_jitter_draws
        self.scoring_func = config.scoring_func
        self.gate = ROUTERS[config.router_type](layer)
        self.experts = build_experts(config, layer.num_experts, layer.moe_intermediate_size)
        width = layer.shared_expert_intermediate_size
        self.shared_expert = FEED_FORWARDS[config.feed_forward_type](config, width) if width else None
        self.shared_expert_gate = (
            nn.Linear(config.hidden_size, 1, bias=False) if config.shared_expert_gate else None
        )
        self.averages = config.shared_expert_combination == "average"
        self.output_norm = build_norm(config) if config.moe_output_norm else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        router_losses: RouterLosses | None = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: `[batch, tokens, hidden]`, as the output.
            router_losses: takes what this layer contributes.
        """
        if self.training and self.jitter_noise > 0:
            low, high = 1.0 - self.jitter_noise, 1.0 + self.jitter_noise
            for _ in range(self.jitter_draws):
                hidden_states = hidden_states * torch.empty_like(hidden_states).uniform_(low, high)
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits, weights, indices = self.gate(tokens)
        output = self.experts(tokens, indices, weights).reshape(hidden_states.shape)
        if self.shared_expert is not None:
            shared = self.shared_expert(hidden_states)
            if self.shared_expert_gate is not None:
                shared = torch.sigmoid(self.shared_expert_gate(hidden_states)) * shared
            output = (output + shared) / 2 if self.averages else output + shared
        if self.output_norm is not None:
            output = self.output_norm(output)
        if router_losses is not None:
            # Of the gate only forward is used: an adapter that wraps it has nothing else.
            router_losses.add(logits, SCORES[self.scoring_func](logits), indices)
        return output


def build_feed_forward(config: MoebaConfig, layer_idx: int) -> nn.Module:
    """The dense or sparse feed-forward of one layer."""
    if config.mlp_layer_types[layer_idx] == "sparse":
        return MoebaSparseMoeBlock(config, layer_idx)
    return FEED_FORWARDS[config.feed_forward_type](config, layer_view(config, layer_idx).intermediate_size)

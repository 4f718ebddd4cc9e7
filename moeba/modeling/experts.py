"""Experts: many feed-forwards held as three-dimensional tensors, of which each token visits a few.

The `forward` here is the plain reference: a loop over the experts that got tokens. transformers' experts
interface swaps in a faster computation by name: `experts_implementation="grouped_mm"`, `"batched_mm"`, or any
that was registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration.configuration_moeba import MoebaConfig
from ..library.upstream import init, use_experts_implementation
from .activations import build_activation


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
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        # The steps of a recorded program may not hang on which experts this input chose: all of them see all tokens.
        for index in range(num_experts):
            weight = torch.where(top_k_index == index, top_k_weights, 0).sum(1, keepdim=True)
            output += (expert(index, hidden_states) * weight).to(output.dtype)
        return output
    for index in top_k_index.unique().tolist():
        if index == num_experts:
            continue
        position, token = torch.where(index == top_k_index.T)
        answer = expert(index, hidden_states[token]) * top_k_weights[token, position, None]
        output.index_add_(0, token, answer.to(output.dtype))
    return output


class ClampedGate:
    """`(up + 1) * gate * sigmoid(alpha * gate)`, gate cut above `limit` and up on both sides (GPT-OSS)."""

    def __init__(self, alpha: float, limit: float | None) -> None:
        self.alpha = alpha
        self.limit = limit

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """`[..., width]` in and out."""
        if self.limit is not None:
            gate = gate.clamp(max=self.limit)
            up = up.clamp(min=-self.limit, max=self.limit)
        return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))


class Experts(nn.Module):
    """Tensors and reference computation of all kinds; which kind it is, the subclasses fix."""

    gated: ClassVar[bool] = True
    biased: ClassVar[bool] = False
    _apply_gate: Callable[[torch.Tensor], torch.Tensor]  # of the interface

    def __init__(self, config: MoebaConfig, num_experts: int, intermediate_size: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.act_fn = build_activation(config.hidden_act)
        self.inner_name, inner = ("gate_up_proj", 2) if self.gated else ("up_proj", 1)
        for name, outputs, inputs in (
            (self.inner_name, inner * intermediate_size, config.hidden_size),
            ("down_proj", config.hidden_size, intermediate_size),
        ):
            setattr(self, name, nn.Parameter(torch.empty(num_experts, outputs, inputs)))
            if self.biased:
                setattr(self, f"{name}_bias", nn.Parameter(torch.empty(num_experts, outputs)))

    def init_weights(self, std: float) -> None:
        """Fill new tensors, and leave those that were loaded."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("bias"):
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=std)

    def _project(self, name: str, index: int, tokens: torch.Tensor) -> torch.Tensor:
        bias = getattr(self, f"{name}_bias")[index] if self.biased else None
        return F.linear(tokens, getattr(self, name)[index], bias)

    def _expert(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        """What one expert answers, `[n, hidden]` in and out."""
        inner = self._project(self.inner_name, index, tokens)
        inner = self._apply_gate(inner) if self.gated else self.act_fn(inner)
        return self._project("down_proj", index, inner)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """`[tokens, hidden]` in and out."""
        return loop_over_experts(self.num_experts, hidden_states, top_k_index, top_k_weights, self._expert)


@use_experts_implementation
class MoebaExperts(Experts):
    """Gated experts: `gate_up_proj` `[experts, 2 * width, hidden]`, `down_proj` `[experts, hidden, width]`."""


@use_experts_implementation(has_bias=True)
class MoebaBiasedExperts(Experts):
    """Gated experts with biases `gate_up_proj_bias` `[experts, 2 * width]`, `down_proj_bias` `[experts, hidden]`."""

    biased = True


@use_experts_implementation(has_gate=False)
class MoebaUngatedExperts(Experts):
    """Plain experts: `up_proj` `[experts, width, hidden]`, `down_proj` `[experts, hidden, width]`."""

    gated = False


@use_experts_implementation(has_gate=False, has_bias=True)
class MoebaUngatedBiasedExperts(Experts):
    """Plain experts with biases `up_proj_bias` `[experts, width]`, `down_proj_bias` `[experts, hidden]`."""

    gated, biased = False, True


class _ClampedExperts(Experts):
    """Gated experts whose gate is GPT-OSS's `ClampedGate`."""

    def __init__(self, config: MoebaConfig, num_experts: int, intermediate_size: int) -> None:
        super().__init__(config, num_experts, intermediate_size)
        self.clamped_gate = ClampedGate(config.swiglu_alpha, config.swiglu_limit)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """`[..., 2 * width] -> [..., width]`, as the experts interface calls it."""
        return self.clamped_gate(*gate_up.chunk(2, dim=-1))


@use_experts_implementation
class MoebaClampedExperts(_ClampedExperts):
    """Clamped gated experts, with the tensors of `MoebaExperts`."""


@use_experts_implementation(has_bias=True)
class MoebaClampedBiasedExperts(_ClampedExperts):
    """Clamped gated experts, with the tensors of `MoebaBiasedExperts`."""

    biased = True


# By (feed_forward_type, expert_bias): the interface wants these two facts fixed for each class.
EXPERTS: dict[tuple[str, bool], type[nn.Module]] = {
    ("gated", False): MoebaExperts,
    ("gated", True): MoebaBiasedExperts,
    ("clamped_gated", False): MoebaClampedExperts,
    ("clamped_gated", True): MoebaClampedBiasedExperts,
    ("mlp", False): MoebaUngatedExperts,
    ("mlp", True): MoebaUngatedBiasedExperts,
}


def build_experts(config: MoebaConfig, num_experts: int, intermediate_size: int) -> nn.Module:
    """The experts of one layer. `config` is the model's own: at each call it names the implementation."""
    return EXPERTS[config.feed_forward_type, config.expert_bias](config, num_experts, intermediate_size)

"""Router: which experts a token visits, and how much each one's answer counts.

Every router turns a token into one logit an expert. What follows differs: scores of all experts, of which the
best are kept (`topk`); the best logits, which then share the weight (`topk_softmax`) or have one each
(`topk_sigmoid`); or two draws, each among the experts that come close to the best (`sparsemixer`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration.configuration_moeba import MoebaConfig

SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: F.softmax(logits, dim=-1, dtype=torch.float),
    "sigmoid": lambda logits: logits.float().sigmoid(),
}
# A group of experts counts as its two best together (DeepSeek-V3), or as its best one (DeepSeek-V2).
GROUP_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "top2_sum": lambda grouped: grouped.topk(2, dim=-1)[0].sum(dim=-1),
    "max": lambda grouped: grouped.max(dim=-1).values,
}
# The score of experts outside the chosen groups: out of reach, or 0, which still wins over a score that underflowed.
CLOSED_GROUPS = {"excluded": float("-inf"), "zero": 0.0}
DTYPES = {"float32": torch.float32}


def mask_outside_best_groups(
    scores: torch.Tensor,
    n_group: int,
    topk_group: int,
    group_scoring: str = "top2_sum",
    closed: float = float("-inf"),
) -> torch.Tensor:
    """Put `closed` on experts outside the `topk_group` best of `n_group` groups.

    Args:
        scores: `[tokens, experts]`; neighbouring experts form a group.
    """
    grouped = scores.view(scores.shape[0], n_group, -1)
    group_scores = GROUP_SCORES[group_scoring](grouped)
    best = torch.topk(group_scores, k=topk_group, dim=-1, sorted=False)[1]
    outside = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(outside.unsqueeze(-1), closed).view_as(scores)


class MoebaRouter(nn.Module):
    """One logit an expert; `choose` makes experts and weights of them."""

    e_score_correction_bias: torch.Tensor | None

    def __init__(self, config: MoebaConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.num_experts = config.num_experts
        self.scoring_func = config.scoring_func
        self.softcap = config.router_logit_softcapping
        self.matmul_dtype = DTYPES.get(config.router_matmul_dtype)
        self.weight_dtype = DTYPES.get(config.router_weight_dtype)
        kept = DTYPES.get(config.router_param_dtype)  # whatever dtype the model is built in
        self.weight = nn.Parameter(torch.empty(self.num_experts, config.hidden_size, dtype=kept))
        self.bias = nn.Parameter(torch.empty(self.num_experts)) if config.router_bias else None
        selection = config.router_selection_bias
        bias = torch.zeros(self.num_experts, dtype=torch.float32) if selection else None
        self.register_buffer("e_score_correction_bias", bias)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Each expert's score before any choice, in float32, `[tokens, experts]`."""
        return SCORES[self.scoring_func](logits)

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and expert indices, both `[tokens, top_k]`."""
        raise NotImplementedError

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states: `[tokens, hidden]`.

        Returns:
            Logits `[tokens, experts]`, weights `[tokens, top_k]` and expert indices `[tokens, top_k]`.
        """
        dtype = self.matmul_dtype or self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        logits = F.linear(hidden_states.to(dtype), self.weight.to(dtype), bias)
        if self.softcap is not None:
            logits = torch.tanh(logits.float() / self.softcap) * self.softcap
        weights, indices = self.choose(logits)
        return logits, weights.to(self.weight_dtype or hidden_states.dtype), indices


class MoebaTopKRouter(MoebaRouter):
    """Scores every expert and keeps the best `num_experts_per_tok`, perhaps of a few groups only."""

    def __init__(self, config: MoebaConfig) -> None:
        super().__init__(config)
        self.rounds_scores = config.router_score_dtype == "model"
        self.norm_topk_prob = config.norm_topk_prob
        self.norm_topk_eps = config.norm_topk_eps
        self.norm_topk_min = config.norm_topk_min
        self.topk_sorted = config.topk_sorted
        self.n_group = config.n_group
        self.topk_group = config.topk_group
        self.group_scoring = config.group_scoring
        self.closed = CLOSED_GROUPS[config.group_mask]
        self.routed_scaling_factor = config.routed_scaling_factor

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.scores(logits)
        if self.rounds_scores:
            scores = scores.to(logits.dtype)
        choice = scores if self.e_score_correction_bias is None else scores + self.e_score_correction_bias
        if self.n_group > 1:
            choice = mask_outside_best_groups(
                choice, self.n_group, self.topk_group, self.group_scoring, self.closed
            )
        indices = torch.topk(choice, self.top_k, dim=-1, sorted=self.topk_sorted)[1]
        weights = scores.gather(1, indices)
        if self.norm_topk_prob:
            total = weights.sum(dim=-1, keepdim=True)
            if self.norm_topk_eps:
                total = total + self.norm_topk_eps
            if self.norm_topk_min:
                total = total.clamp(min=self.norm_topk_min)
            weights = weights / total
        if self.routed_scaling_factor != 1.0:
            weights = weights * self.routed_scaling_factor
        return weights, indices


class MoebaTopKSoftmaxRouter(MoebaRouter):
    """Keeps the best logits and lets softmax share the weight among them (GPT-OSS, Granite)."""

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best, indices = torch.topk(logits, self.top_k, dim=-1)
        return F.softmax(best, dim=-1, dtype=torch.float), indices


class MoebaTopKSigmoidRouter(MoebaRouter):
    """Keeps the best logits, each weighed by its own sigmoid (Command A+)."""

    def __init__(self, config: MoebaConfig) -> None:
        super().__init__(config)
        self.norm_topk_prob = config.norm_topk_prob

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best, indices = torch.topk(logits, self.top_k, dim=-1)
        weights = torch.sigmoid(best)
        return weights / weights.sum(dim=-1, keepdim=True) if self.norm_topk_prob else weights, indices


class MoebaSparseMixerRouter(MoebaRouter):
    """Two experts, each weighed among those close to the best that is left (Liu et al. 2023, GRIN 2024).

    Training draws each of the two at random among the close ones, and corrects the gradient with Heun's method.
    """

    def __init__(self, config: MoebaConfig) -> None:
        super().__init__(config)
        self.sparsemixer_eps = config.sparsemixer_eps

    def _pick(
        self, logits: torch.Tensor, candidates: torch.Tensor, draws: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One weight and one index a token, `[tokens, 1]`.

        Args:
            candidates: the logits without those taken.
            draws: how many numbers are drawn to choose the midpoint, of which the last counts.
        """
        with torch.no_grad():
            best, index = candidates.max(dim=-1, keepdim=True)
            scale = logits.abs().clamp(min=best)
            far = ((best - logits) / scale) > (2 * self.sparsemixer_eps)
        close = candidates.masked_fill(far, float("-inf"))
        if not self.training:
            return torch.softmax(close, dim=-1).gather(-1, index), index
        gumbel = -torch.empty_like(close).exponential_().log()
        index = (close + gumbel).max(dim=-1, keepdim=True)[1]
        shares = torch.softmax(close, dim=-1)
        likeliest, top = shares.max(dim=-1, keepdim=True)
        for _ in range(draws):
            chance = torch.rand_like(likeliest)
        midpoint = torch.logical_or(index == top, chance > 0.75)
        factor = torch.add(0.3333, midpoint, alpha=0.6667).type_as(shares)
        return _HeunGradient.apply(logits, shares.gather(-1, index), index, shares, factor), index

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, index = self._pick(logits, logits, draws=1)
        # The published code draws twice here: a random state gives the same experts as there.
        second, next_index = self._pick(logits, logits.scatter(-1, index, float("-inf")), draws=2)
        return torch.cat((first, second), dim=-1), torch.cat((index, next_index), dim=-1)


class _HeunGradient(torch.autograd.Function):
    """Forward: the weight times a factor. Backward: the softmax gradient of the drawn expert, times its weight."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        weight: torch.Tensor,
        index: torch.Tensor,
        shares: torch.Tensor,
        factor: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, index, shares)
        return weight * factor

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, index, shares = ctx.saved_tensors
        gradient = gradients[0] * weight
        at_logits = (shares * -gradient).scatter_add(-1, index, gradient)
        return at_logits, None, None, None, None


ROUTERS: dict[str, type[MoebaRouter]] = {
    "topk": MoebaTopKRouter,
    "topk_softmax": MoebaTopKSoftmaxRouter,
    "topk_sigmoid": MoebaTopKSigmoidRouter,
    "sparsemixer": MoebaSparseMixerRouter,
}

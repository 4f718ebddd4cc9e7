"""Router: which experts a token visits, and how much each one's answer counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration.configuration_moeba import MoebaConfig

SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: F.softmax(logits, dim=-1, dtype=torch.float),
    "sigmoid": lambda logits: logits.float().sigmoid(),
}
DTYPES = {"float32": torch.float32}


def mask_outside_best_groups(scores: torch.Tensor, n_group: int, topk_group: int) -> torch.Tensor:
    """Put -inf on experts outside the `topk_group` groups whose two best experts score highest (DeepSeek-V3).

    Args:
        scores: `[tokens, experts]`; neighbouring experts form a group.
    """
    grouped = scores.view(scores.shape[0], n_group, -1)
    group_scores = grouped.topk(2, dim=-1)[0].sum(dim=-1)
    best = torch.topk(group_scores, k=topk_group, dim=-1, sorted=False)[1]
    outside = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).view_as(scores)


class MoebaTopKRouter(nn.Module):
    """Scores every expert for a token and keeps the best `num_experts_per_tok`."""

    def __init__(self, config: MoebaConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.num_experts = config.num_experts
        self.scoring_func = config.scoring_func
        self.norm_topk_prob = config.norm_topk_prob
        self.norm_topk_eps = config.norm_topk_eps
        self.n_group = config.n_group
        self.topk_group = config.topk_group
        self.routed_scaling_factor = config.routed_scaling_factor
        self.matmul_dtype = DTYPES.get(config.router_matmul_dtype)
        self.weight_dtype = DTYPES.get(config.router_weight_dtype)
        self.weight = nn.Parameter(torch.empty(self.num_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(self.num_experts)) if config.router_bias else None
        bias = torch.zeros(self.num_experts) if config.router_selection_bias else None
        self.register_buffer("e_score_correction_bias", bias)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Each expert's score in float32, `[tokens, experts]`."""
        return SCORES[self.scoring_func](logits)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states: `[tokens, hidden]`.

        Returns:
            Logits `[tokens, experts]`, weights `[tokens, top_k]` and expert indices `[tokens, top_k]`.
        """
        dtype = self.matmul_dtype or hidden_states.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        logits = F.linear(hidden_states.to(dtype), self.weight.to(dtype), bias)
        scores = self.scores(logits)
        choice = scores if self.e_score_correction_bias is None else scores + self.e_score_correction_bias
        if self.n_group > 1:
            choice = mask_outside_best_groups(choice, self.n_group, self.topk_group)
        indices = torch.topk(choice, self.top_k, dim=-1)[1]
        weights = scores.gather(1, indices)
        if self.norm_topk_prob:
            total = weights.sum(dim=-1, keepdim=True)
            weights = weights / (total + self.norm_topk_eps if self.norm_topk_eps else total)
        if self.routed_scaling_factor != 1.0:
            weights = weights * self.routed_scaling_factor
        return logits, weights.to(self.weight_dtype or hidden_states.dtype), indices

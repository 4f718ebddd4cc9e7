"""Router losses: keep every expert in use, and the router's logits small.

Each layer's losses are two numbers computed where its logits are at hand, so a collapse in one layer cannot
hide behind another layer, nothing of size layers x tokens x experts is kept, and the gradient survives either
kind of activation checkpointing because the numbers travel as a layer's output.
"""

from __future__ import annotations

import torch


def router_losses(
    logits: torch.Tensor, scores: torch.Tensor, indices: torch.Tensor, token_mask: torch.Tensor | None
) -> torch.Tensor:
    """`[balance, z]` of one layer.

    Balance (Fedus et al. 2021) is `experts * sum_e share_e * probability_e`, where `share_e` counts the
    tokens that chose expert e and `probability_e` is its mean share of the scores: `top_k` when all experts
    are used alike, up to `experts` when all tokens agree. z (Zoph et al. 2022) is the mean of
    `logsumexp(logits) ** 2`.

    Args:
        logits, scores: `[tokens, experts]`. indices: `[tokens, top_k]`, the experts really chosen.
        token_mask: `[batch, sequence]` with `batch * sequence == tokens`; False at padding.
    """
    experts = logits.shape[-1]
    if token_mask is None:
        valid = logits.new_ones(logits.shape[0], dtype=torch.float32)
    else:
        valid = token_mask.reshape(-1).to(device=logits.device, dtype=torch.float32)
    count = valid.sum().clamp(min=1.0)
    visits = valid[:, None].expand_as(indices).reshape(-1)
    share = valid.new_zeros(experts).index_add(0, indices.reshape(-1), visits) / count
    probabilities = scores / scores.sum(dim=-1, keepdim=True)
    probability = (probabilities * valid[:, None]).sum(dim=0) / count
    balance = experts * (share * probability).sum()
    z = (torch.logsumexp(logits.float(), dim=-1).square() * valid).sum() / count
    return torch.stack((balance, z))


def token_mask_from(
    attention_mask: torch.Tensor | dict | None, input_shape: tuple[int, int]
) -> torch.Tensor | None:
    """Which of the `[batch, tokens]` inputs are real: a 2-D mask's last columns, a 4-D mask's diagonal.

    A 4-D mask may be boolean (True: visible) or additive (0: visible); padding is a token that does not see
    itself.
    """
    if isinstance(attention_mask, dict):  # one a layer type: each shows padding in the same way
        attention_mask = next(iter(attention_mask.values()), None)
    if not isinstance(attention_mask, torch.Tensor):
        return None
    batch, tokens = input_shape
    if attention_mask.dim() == 2:
        return attention_mask[:, -tokens:].bool()
    if attention_mask.dim() == 4:
        diagonal = torch.diagonal(attention_mask[:, 0, -tokens:, -tokens:], dim1=-2, dim2=-1)
        visible = diagonal if diagonal.dtype == torch.bool else diagonal == 0
        return visible.expand(batch, -1)
    return None


def share_of_tokens(
    labels: torch.Tensor | None,
    shift_labels: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | int | None,
) -> torch.Tensor | float:
    """This micro-batch's share of the tokens that one optimiser step is averaged over.

    `Trainer` divides the summed cross-entropy by `num_items_in_batch`, so a router loss that is added to it
    must be weighted by the same share, or its coefficient grows with the number of accumulation steps.
    """
    if num_items_in_batch is None:
        return 1.0
    counted = labels[..., 1:] if shift_labels is None and labels is not None else shift_labels
    assert counted is not None
    count = counted.ne(-100).sum().float()
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(count.device)
    return count / num_items_in_batch

"""Router losses: keep every expert in use, and the router's logits small.

`router_loss` of the config chooses how they are made of the layers and when they join the loss. Each layer's share is
computed where its logits are at hand and travels as the layer's output: nothing of size layers x tokens x experts is
kept, and the gradient survives either kind of activation checkpointing.

A head that wants them gives its model a `RouterLosses` to fill, and so does a layer its feed-forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import ClassVar

import torch
import torch.nn.functional as F


class LayerwiseLoss:
    """Balance and z-loss of each layer, averaged over layers: in training, and only there.

    A collapse in one layer cannot hide behind another layer. Evaluation losses stay cross-entropies, so that those of
    a dense model and of the mixture made from it compare.

    Attributes:
        by_share: a micro-batch adds it by its share of the optimiser step's tokens (`share_of_tokens`).
    """

    by_share: ClassVar[bool] = True

    @staticmethod
    def wanted(training: bool, labelled: bool, output_router_logits: bool, weighed: bool) -> bool:
        """Whether a head asks its model for router losses.

        Args:
            labelled: the head was given labels. In training without them, somebody else computes the loss.
            weighed: a coefficient is above 0.
        """
        return output_router_logits or (weighed and (labelled or (training and torch.is_grad_enabled())))

    @staticmethod
    def joins(training: bool, output_router_logits: bool) -> bool:
        """Whether they are part of the head's loss."""
        return training

    @staticmethod
    def of_layer(
        logits: torch.Tensor, scores: torch.Tensor, indices: torch.Tensor, token_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """What one layer contributes; `router_losses` says of what."""
        return router_losses(logits, scores, indices, token_mask)

    @staticmethod
    def stack(layers: Sequence[torch.Tensor]) -> torch.Tensor:
        """All layers' contributions in one tensor, layers first."""
        return torch.stack(list(layers))

    @staticmethod
    def of_model(layers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Balance and z-loss, if there is one, of what `stack` gave."""
        balance, z = layers.mean(dim=0).unbind()
        return balance, z


class PooledLoss(LayerwiseLoss):
    """The balance loss of transformers' own models: counts and scores of all layers are pooled before the product.

    It is there when router logits are asked for, in evaluation too, and is about the softmax of the logits and its best
    experts, however the router scores and chooses. As in a stock model, it is added whole to each micro-batch of an
    optimiser step, so that under gradient accumulation its coefficient grows with their number.
    """

    by_share = False

    @staticmethod
    def wanted(training: bool, labelled: bool, output_router_logits: bool, weighed: bool) -> bool:
        return output_router_logits

    @staticmethod
    def joins(training: bool, output_router_logits: bool) -> bool:
        return output_router_logits

    @staticmethod
    def of_layer(
        logits: torch.Tensor, scores: torch.Tensor, indices: torch.Tensor, token_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Sums over tokens: each expert's visits, its probabilities, and the number of tokens, `[3, experts]`."""
        experts, top_k = logits.shape[-1], indices.shape[-1]
        probabilities = F.softmax(logits, dim=-1)
        best = torch.topk(probabilities, top_k, dim=-1)[1]
        probabilities = probabilities.float()
        valid = probabilities.new_ones(logits.shape[0])
        if token_mask is not None:
            valid = token_mask.reshape(-1).to(valid)
            probabilities = probabilities * valid[:, None]
        visits = valid.new_zeros(experts).index_add(0, best.reshape(-1), valid.repeat_interleave(top_k))
        return torch.stack((visits, probabilities.sum(dim=0), valid.sum().expand(experts)))

    @staticmethod
    def stack(layers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Layers may differ in their experts: those that one lacks get no token there."""
        most = max(layer.shape[-1] for layer in layers)
        return torch.stack([F.pad(layer, (0, most - layer.shape[-1])) for layer in layers])

    @staticmethod
    def of_model(layers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        # One after the other, as transformers adds them up.
        visits, probabilities, tokens = reduce(torch.add, layers.unbind())
        count = tokens[0].clamp(min=1.0)
        return len(visits) * ((visits / count) * (probabilities / count)).sum(), None


def _never(*asked: bool) -> bool:
    return False


class NoLoss(LayerwiseLoss):
    """No head asks for any. Asked by hand, a model gives those of `LayerwiseLoss`."""

    wanted = joins = staticmethod(_never)  # type: ignore[assignment]


ROUTER_LOSSES: dict[str, type[LayerwiseLoss]] = {
    "training": LayerwiseLoss,
    "with_router_logits": PooledLoss,
    "none": NoLoss,
}


class RouterLosses:
    """What the sparse layers of one forward pass contribute.

    No list by itself: wrappers of modules (FSDP) rebuild lists that they pass on.

    Attributes:
        form: how the losses are made of the layers.
        token_mask: `[batch, tokens]`, False at padding, which does not count; None where all tokens are real.
        layers: the contributions, in the order of the layers.
    """

    def __init__(self, form: type[LayerwiseLoss], token_mask: torch.Tensor | None = None) -> None:
        self.form, self.token_mask = form, token_mask
        self.layers: list[torch.Tensor] = []

    def of_one_layer(self) -> RouterLosses:
        """An empty one of the same form, as a checkpointed layer must fill one that came to be within it."""
        return RouterLosses(self.form, self.token_mask)

    def add(self, logits: torch.Tensor, scores: torch.Tensor, indices: torch.Tensor) -> None:
        """Take a layer's `logits` and `scores` `[tokens, experts]`, and its choices `[tokens, top_k]`."""
        self.layers.append(self.form.of_layer(logits, scores, indices, self.token_mask))

    def of_model(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Balance and z-loss, if there is one, unweighted."""
        device = self.layers[-1].device
        return self.form.of_model(self.form.stack([layer.to(device) for layer in self.layers]))


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
    counted = labels[..., 1:] if shift_labels is None and labels is not None else shift_labels
    if num_items_in_batch is None or counted is None:
        return 1.0
    count = counted.ne(-100).sum().float()
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(count.device)
    return count / num_items_in_batch

"""The router losses, where Trainer computes the loss itself.

Label smoothing and `compute_loss_func` take the labels away before the model runs, so that it has no loss to add its
router losses to. A `compute_loss_func` made here adds them, for every head. Without one a mixture trains on the bare
loss; the model warns of that once, unless it is compiled (`torch_compile`): then nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..modeling.balancing import share_of_tokens
from ..modeling.head_losses import RouterLossHead
from ..modeling.modeling_moeba import MoebaForCausalLM

LossFunction = Callable[..., torch.Tensor]


def balanced_loss(
    model: nn.Module, loss_func: LossFunction | None = None, label_smoothing: float = 0.0
) -> LossFunction:
    """A `compute_loss_func` for Trainer: a loss of your own, or a smoothed one, and the model's router losses.

    ```python
    Trainer(model, args, compute_loss_func=balanced_loss(model, label_smoothing=0.1), ...)
    ```

    The router losses join as they join the model's own loss: as its config's `router_loss` says, weighted by the
    batch's share of `num_items_in_batch`.

    Args:
        model: a Moeba model with a head, or something around one, such as a PEFT model. The head for question answering
            keeps its labels, and has the router losses in its own loss.
        loss_func: called as Trainer calls one: `(outputs, labels, num_items_in_batch=...)`.
        label_smoothing: instead of it, as `label_smoothing_factor` of the training arguments.

    Raises:
        ValueError: not exactly one of the two is given, or there is no such model.
    """
    if (loss_func is None) == (label_smoothing == 0.0) or not 0.0 <= label_smoothing < 1.0:
        raise ValueError(
            f"balanced_loss: give exactly one of loss_func (got {loss_func}) and label_smoothing (got "
            f"{label_smoothing}; above 0 and below 1). With neither, the model's own loss has its router losses."
        )
    head = next((module for module in model.modules() if isinstance(module, RouterLossHead)), None)
    if head is None:
        raise ValueError(f"balanced_loss: {type(model).__name__} holds no Moeba model with a head.")
    head.adds_router_losses_elsewhere = True
    shifts = isinstance(head, MoebaForCausalLM)
    own = loss_func or _smoothed(label_smoothing, shifts)

    def compute(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        loss = own(outputs, labels, num_items_in_batch=num_items_in_batch)
        if getattr(outputs, "aux_loss", None) is None:
            return loss
        share = share_of_tokens(labels if shifts else None, None if shifts else labels, num_items_in_batch)
        shown = getattr(outputs, "router_logits", None) is not None
        joined = head.with_router_losses(loss, outputs.aux_loss, outputs.z_loss, shown, share)
        return loss if joined is None else joined

    return compute


def _smoothed(epsilon: float, shifts: bool) -> LossFunction:
    """As Trainer's own: a share of the target goes to all classes alike.

    Args:
        shifts: labels are the input ids, shifted here.
    """

    def smoothed(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        logits, targets = outputs["logits"].float(), labels.to(outputs["logits"].device)
        if shifts:
            logits, targets = logits[..., :-1, :], targets[..., 1:]
        total = F.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), label_smoothing=epsilon, reduction="sum"
        )
        return total / (targets.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch)

    return smoothed

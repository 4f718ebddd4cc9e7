"""How router losses reach the loss of a head, and how they are shown beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

from ..configuration.configuration_moeba import MoebaConfig
from ..library.upstream import MoeCausalLMOutputWithPast, can_return_tuple, logging
from .balancing import ROUTER_LOSSES, LayerwiseLoss, RouterLosses

logger = logging.get_logger(__name__)


@dataclass
class MoebaCausalLMOutputWithPast(MoeCausalLMOutputWithPast):
    """transformers' MoE output, and the z-loss where it has a coefficient, both losses unweighted.

    As a tuple it is the stock model's: the balance loss is there only beside router logits. As a mapping it shows the
    losses whenever they were computed; `keys_to_ignore_at_inference` keeps them out of a Trainer's predictions.
    """

    z_loss: torch.Tensor | None = None

    def to_tuple(self) -> tuple:
        hidden = {"z_loss"} | ({"aux_loss"} if self.router_logits is None else set())
        return tuple(self[name] for name in self.keys() if name not in hidden)


class RouterLossHead:
    """What a head needs to add the router losses to its own.

    Attributes:
        adds_router_losses_elsewhere: whoever computes the loss in the head's place adds them too
            (`moeba.training.balanced_loss`), so that no warning is due.
    """

    config: MoebaConfig
    training: bool
    adds_router_losses_elsewhere = False

    @property
    def router_loss(self) -> type[LayerwiseLoss]:
        """The config's choice."""
        return ROUTER_LOSSES[self.config.router_loss]

    @property
    def router_losses_weigh(self) -> bool:
        """Whether any coefficient is above 0."""
        return self.config.router_aux_loss_coef > 0 or self.config.router_z_loss_coef > 0

    def wanted_router_losses(
        self, has_labels: bool, output_router_logits: bool = False
    ) -> RouterLosses | None:
        """What the model is to fill in this forward pass; None where no losses are needed."""
        if not self.config.sparse_layers:
            return None
        weighed = self.router_losses_weigh
        wanted = self.router_loss.wanted(self.training, has_labels, output_router_logits, weighed)
        return RouterLosses(self.router_loss) if wanted else None

    def weigh(self, balance: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
        """The balance and z losses, each times its coefficient."""
        weighed = self.config.router_aux_loss_coef * balance
        return weighed if z is None else weighed + self.config.router_z_loss_coef * z

    def with_router_losses(
        self,
        loss: torch.Tensor | None,
        balance: torch.Tensor,
        z: torch.Tensor | None,
        output_router_logits: bool,
        share: torch.Tensor | float = 1.0,
    ) -> torch.Tensor | None:
        """The head's loss, and the weighed ones where the config says that they join it.

        Args:
            share: of the optimiser step's tokens, see `share_of_tokens`.
        """
        if not self.router_loss.joins(self.training, output_router_logits):
            return loss
        if loss is None:
            self.warn_of_lost_labels()
            return None
        weighed = self.weigh(balance, z) * (share if self.router_loss.by_share else 1.0)
        return loss + weighed.to(loss.device)

    def warn_of_lost_labels(self) -> None:
        """Say once that router losses join no loss: Trainer takes the labels away where it computes the loss itself.

        Nothing can be said from within a compiled forward; the rule stands in `moeba.training.balanced_loss`.
        """
        if self.adds_router_losses_elsewhere or not self.router_losses_weigh:
            return
        if not (self.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return
        logger.warning_once(
            f"{type(self).__name__} trains without labels (label_smoothing_factor and compute_loss_func take them "
            f"away), so its router losses (router_aux_loss_coef={self.config.router_aux_loss_coef}, router_z_loss_coef="
            f"{self.config.router_z_loss_coef}) are in no loss. Give Trainer compute_loss_func="
            "moeba.training.balanced_loss(model, …), which adds them; or set router_loss='none'."
        )


def with_router_losses(forward: Callable) -> Callable:
    """Add the router losses to the loss of a generic head of transformers, whose forward only knows its own.

    Where somebody else computes the loss (`adds_router_losses_elsewhere`), the outputs have them beside the logits.
    Those of `router_loss="with_router_logits"` never join, as such heads return no router logits.
    Trainer reads the names of inputs and labels off the signature, which stays that of `forward`.
    """

    @wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        labelled = any(kwargs.get(name) is not None for name in ("labels", "start_positions"))
        losses = self.wanted_router_losses(labelled) if self.router_loss.joins(self.training, False) else None
        if losses is not None and not labelled:
            self.warn_of_lost_labels()
            losses = losses if self.adds_router_losses_elsewhere else None
        outputs = forward(self, *args, return_dict=True, router_losses=losses, **kwargs)
        if losses is None:
            return outputs
        balance, z = losses.of_model()
        if labelled:
            outputs.loss = self.with_router_losses(outputs.loss, balance, z, False)
        else:
            outputs["aux_loss"], outputs["z_loss"] = balance, z
        return outputs

    return can_return_tuple(wrapper)


__all__ = ["MoebaCausalLMOutputWithPast", "RouterLossHead", "with_router_losses"]

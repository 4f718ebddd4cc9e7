"""What a reader should know of how a converted model trains, which no comparison of logits shows."""

from __future__ import annotations

from ..configuration import MoebaConfig
from .family import Family


def notes_on_balance(config: MoebaConfig, family: Family) -> list[str]:
    """One line if the loss balances no experts, as the source's does not, and how to let it."""
    if not config.sparse_layers:
        return []
    choose = "router_loss='training' trains with a balance loss and leaves evaluation alone"
    coefficient = f"router_aux_loss_coef={config.router_aux_loss_coef}"
    if config.router_loss == "none":
        return [
            f"no balance loss in training: transformers' {family.architecture} has none. {choose} ({coefficient})"
        ]
    if config.output_router_logits and config.router_aux_loss_coef:
        return []
    switch = f"output_router_logits={config.output_router_logits}, {coefficient}"
    return [
        f"no balance loss in training, as the source says ({switch}). output_router_logits=True with a coefficient "
        f"above 0 adds it as transformers' {family.architecture} does, in evaluation too; {choose}"
    ]

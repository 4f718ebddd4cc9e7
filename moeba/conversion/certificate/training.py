"""Two models as they train: with dropout and jitter drawn from one seed, and the fields that decide them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from ...configuration import MoebaConfig
from ...modeling import MoebaForCausalLM
from ..config_rows import Inert
from ..family import Family
from ..unread import unread_keys
from .fault import Fault

_SEED = 0
# What a field of a native config that acts in training alone has in its name. Heads of other tasks are not compared.
_WORDS, _OTHER_HEADS = (
    ("dropout", "pdrop", "_drop", "jitter", "aux_loss", "z_loss"),
    ("classifier", "summary"),
)
# What is left of a dropped row is made larger, and rounding with it.
AMPLIFIED = 8


@contextmanager
def training(model: PreTrainedModel, seed: int = _SEED) -> Iterator[None]:
    """In train mode, its random draws from a seed of their own; everyone else's stay as they were."""
    before = model.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.train()
        try:
            yield
        finally:
            model.train(before)


def training_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """`[rows, length, vocabulary]`, with whatever the model drops out."""
    with training(model), torch.no_grad():
        return model(ids, use_cache=False).logits


class NoLossError(ValueError):
    """A stock model fails at its own loss."""


def own_loss(model: PreTrainedModel, ids: torch.Tensor, train: bool = False) -> float:
    """The model's own `.loss`, with the first quarter of each row left out of it.

    Raises:
        NoLossError: a stock model cannot compute it.
    """
    labels = ids.clone()
    labels[:, : ids.shape[1] // 4] = -100
    try:
        with training(model) if train else nullcontext(), torch.no_grad():
            return model(ids, labels=labels, use_cache=False).loss.item()
    except Exception as error:  # stock code raises anything
        if isinstance(model, MoebaForCausalLM):
            raise
        told = " ".join(str(error).split())[:200]
        raise NoLossError(f"the stock model cannot compute its loss: {told}") from error


def has_own_router_loss(model: PreTrainedModel) -> bool:
    """Whether router losses join a Moeba model's loss in training whatever its outputs: as no stock model's do."""
    config = model.config
    if not isinstance(config, MoebaConfig) or not config.sparse_layers or config.router_loss != "training":
        return False
    return config.router_aux_loss_coef > 0 or config.router_z_loss_coef > 0


def lost_fields(family: Family, raw: dict[str, Any], config: MoebaConfig) -> list[str]:
    """Fields of a native config.json that act in training alone and do not come back from our config: `name a → b`."""
    native = family.read_config(raw).to_dict()
    # What was only kept for an export is not what the model trains by.
    said = MoebaConfig.from_dict({**config.to_dict(), "native_fields": None})
    back = family.to_native(said).to_dict()
    unread = unread_keys(raw, family.config_rows)
    inert = {row.their_name for row in family.config_rows if isinstance(row, Inert)}
    return [
        f"{name} {native[name]!r} → {back.get(name)!r}"
        for name in sorted(native)
        if any(word in name for word in _WORDS)
        and not name.startswith(_OTHER_HEADS)
        and name not in inert
        and name not in unread
        and (native[name] or None) != (back.get(name) or None)
    ]


# In every architecture the weights of attention can be dropped out.
TRAINING_FAULT = Fault(
    "dropout of attention raised",
    lambda config: True,
    config=lambda config: {"attention_dropout": min(config.attention_dropout + 0.25, 0.9)},
)
LOSS_FAULT = Fault(
    "coefficient of the balance loss doubled",
    lambda config: (
        bool(config.sparse_layers)
        and config.router_loss == "with_router_logits"
        and config.output_router_logits
        and config.router_aux_loss_coef > 0
    ),
    config=lambda config: {"router_aux_loss_coef": config.router_aux_loss_coef * 2},
)

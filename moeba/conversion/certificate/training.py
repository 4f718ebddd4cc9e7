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
# Fields of both, by one name, that decide what is generated, returned or initialised.
_SHARED = (
    "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "output_router_logits", "initializer_range",
    "tie_word_embeddings", "vocab_size",
)  # fmt: skip
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


def own_loss(
    model: PreTrainedModel, ids: torch.Tensor, train: bool = False, router_logits: bool | None = None
) -> float:
    """The model's own `.loss`, with the first quarter of each row left out of it.

    Args:
        router_logits: whether they are asked for, by which most stock models add a balance loss; None: as its config.

    Raises:
        NoLossError: a stock model cannot compute it.
    """
    labels = ids.clone()
    labels[:, : ids.shape[1] // 4] = -100
    try:
        with training(model) if train else nullcontext(), torch.no_grad():
            settings = {} if router_logits is None else {"output_router_logits": router_logits}
            return model(ids, labels=labels, use_cache=False, **settings).loss.item()
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
    """Fields of a native config.json that no logits show, and that our config says otherwise: `name a → b`.

    Those that act in training alone must come back from ours; those that both sides have under one name must be equal.
    """
    native = family.read_config(raw).to_dict()
    # What was only kept for an export is not what the model trains by.
    said = MoebaConfig.from_dict({**config.to_dict(), "native_fields": None})
    back = family.to_native(said).to_dict()
    unread = unread_keys(raw, family.config_rows)
    inert = {row.their_name for row in family.config_rows if isinstance(row, Inert)}
    ours = {name: getattr(config, name) for name in _SHARED if name in native}
    theirs = {
        name: back.get(name)
        for name in native
        if any(word in name for word in _WORDS)
        and not name.startswith(_OTHER_HEADS)
        and name not in inert
        and name not in unread
    }
    return [
        f"{name} {native[name]!r} → {value!r}"
        for name, value in sorted((theirs | ours).items())
        if (native[name] or None) != (value or None)
    ]


# In every architecture the weights of attention can be dropped out.
TRAINING_FAULT = Fault(
    "dropout of attention raised",
    lambda config: True,
    config=lambda config: {"attention_dropout": min(config.attention_dropout + 0.25, 0.9)},
)
LOSS_FAULT = Fault(
    "coefficient of the balance loss raised",
    lambda config: bool(config.sparse_layers) and config.router_loss == "with_router_logits",
    config=lambda config: {"router_aux_loss_coef": config.router_aux_loss_coef + 0.01},
)

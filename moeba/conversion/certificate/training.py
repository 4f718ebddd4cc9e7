"""Checks of two models as they train: with dropout and jitter drawn from one seed, and the losses that they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from transformers import PreTrainedModel

from ...configuration import MoebaConfig
from ...modeling import MoebaForCausalLM
from .measures import share
from .report import Check
from .run import Run

_SEED = 0
# What is left of a dropped row is made larger, and rounding with it.
AMPLIFIED = 8


def training_pass(run: Run) -> Iterator[Check]:
    """Logits in train mode: both models draw what they drop out from the same seed, in the same order."""
    relative = training_difference(run)
    figures = {"relative_to_spread": relative}
    if run.trains_otherwise and relative > AMPLIFIED * run.tolerance:
        yield Check("training", "unverified", figures, run.trains_otherwise, run.on)
    else:
        yield run.judged("training", relative / AMPLIFIED, figures)


def losses(run: Run) -> Iterator[Check]:
    """The models' own `.loss`: in evaluation, in training with seeded dropout, and beside router logits."""
    yield _loss(run, "loss in evaluation")
    yield _loss(run, "loss in training", train=True)
    if run.both_have_experts:
        yield _loss(run, "loss with router logits", router_logits=True)


def _loss(run: Run, name: str, train: bool = False, router_logits: bool | None = None) -> Check:
    # A source whose routers balance themselves may become a model that stock transformers trains; never the other way
    # round, except where the feed-forwards are new.
    own = [has_own_router_loss(model) for model in run.models]
    shown = router_logits or any(getattr(model.config, "output_router_logits", False) for model in run.models)
    if own[0] != own[1] and (own[0] or run.trains_otherwise) and (train or shown):
        return run.not_applicable(name, "one side alone has router losses, as its config says")
    if run.rebuilt and shown:
        return run.not_applicable(name, "other experts have another balance loss")
    try:
        a, b = (own_loss(model, run.battery.longest, train, router_logits) for model in run.models)
    except NoLossError as error:
        return run.not_applicable(name, str(error))
    relative, figures = abs(a - b) / max(1.0, abs(a)), {"source": a, "target": b}
    if train and run.trains_otherwise and relative > AMPLIFIED * run.tolerance:
        return Check(name, "unverified", figures, run.trains_otherwise, run.on)
    return run.judged(name, relative / AMPLIFIED, figures)


def training_difference(run: Run) -> float:
    """The largest difference of logits in train mode, as a share of their spread."""
    a, b = (training_logits(model, run.battery.longest) for model in run.models)
    return share(a, b)


def loss_difference(run: Run) -> float:
    """The difference of the models' own loss beside router logits.

    Raises:
        NoLossError: a stock model cannot compute it.
    """
    a, b = (own_loss(model, run.battery.longest, router_logits=True) for model in run.models)
    return abs(a - b)


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
        logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits


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
            return float(model(ids, labels=labels, use_cache=False, **settings).loss.item())
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

"""What a check of two models is given: the models, inputs for them, and how far apart rounding may bring them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...library.upstream import attention, attention_of, can_set_attention, supports_sdpa
from .battery import Battery
from .measures import share
from .report import Check

# Largest difference of logits, as a share of their standard deviation, that rounding can explain.
EXACT = 2e-6
REORDERED = 2e-5  # sums over several experts, or products of another shape


@dataclass
class Run:
    """
    Attributes:
        source, target: models in float32 and eval mode.
        tolerance: see `EXACT` and `REORDERED`.
        on: which weights these are, for the report.
        modules: `(module in source, module in target)` that should compute the same.
        trains_otherwise: why the two need not agree where something is dropped out; see `Family`.
        rebuilt: the experts of the one were made of the feed-forwards of the other, and route for themselves.
    """

    source: PreTrainedModel
    target: PreTrainedModel
    battery: Battery
    tolerance: float
    on: str = ""
    modules: Sequence[tuple[str, str]] = ()
    trains_otherwise: str = ""
    rebuilt: bool = False

    @property
    def models(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        return self.source, self.target

    @property
    def both_have_experts(self) -> bool:
        return all(map(has_experts, self.models))

    @cached_property
    def source_logits(self) -> list[torch.Tensor]:
        """Of each input, in double precision."""
        with torch.no_grad():
            return [self.source(ids).logits.double() for ids in self.battery.inputs]

    def with_models(self, source: PreTrainedModel, target: PreTrainedModel) -> Run:
        """The same of other models."""
        other = replace(self, source=source, target=target)
        if source is self.source and "source_logits" in vars(self):
            vars(other)["source_logits"] = self.source_logits
        return other

    def judged(self, name: str, relative: float, figures: dict[str, Any], detail: str = "") -> Check:
        """Verified if a difference is within the tolerance. What is no number is not."""
        return Check(name, "verified" if relative <= self.tolerance else "failed", figures, detail, self.on)

    def not_applicable(self, name: str, why: str) -> Check:
        return Check(name, "not applicable", detail=why, on=self.on)


def has_experts(model: PreTrainedModel) -> bool:
    """Whether some layer of a model of transformers routes tokens to experts."""
    return any(name.endswith(".experts") for name, _ in model.named_modules())


def implementations(*models: PreTrainedModel) -> tuple[str, ...]:
    """Attention implementations that all of the models can run; an old stock model has the one it was loaded with."""
    found: tuple[str, ...] = ("eager", "sdpa")
    for model in models:
        if not can_set_attention(model):
            found = (attention_of(model.config),)
        elif not supports_sdpa(model):
            found = ("eager",)
    return found


def rounding_noise(models: Sequence[PreTrainedModel], battery: Battery) -> float:
    """How far two equally right orders of summation, eager and sdpa attention, drift apart in this very model.

    That is, in the first of the two models that can run both. Where there is none (attention sinks keep sdpa out),
    what an error of one rounding in the embedded tokens grows to.
    """
    model = next((model for model in models if len(implementations(model)) > 1), models[0])
    embedded = model.get_input_embeddings()(battery.longest).detach()
    signs = torch.randint(0, 2, embedded.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    results = []
    with torch.no_grad():
        for implementation in implementations(model):
            with attention(implementation, model):
                # A copy: a model may scale its input in place.
                results.append(model(inputs_embeds=embedded.clone()).logits.double())
        if torch.equal(results[0], results[-1]):
            rounded = embedded * (1 + signs * torch.finfo(embedded.dtype).eps)
            results.append(model(inputs_embeds=rounded).logits.double())
    noise = share(results[0], results[-1])
    # Of no model that computes numbers: nothing may hide behind it.
    return noise if noise < float("inf") else 0.0


def first_divergence(run: Run) -> str | None:
    """Name of the first module, in the target's order of execution, whose output differs."""
    seen: list[dict[str, torch.Tensor]] = [{}, {}]
    handles = []
    for side, model in enumerate(run.models):
        for pair in run.modules:
            module = submodule(model, pair[side])
            if module is not None:
                handles.append(module.register_forward_hook(_recorder(seen[side], pair[1])))
    try:
        with torch.no_grad():
            for model in run.models:
                model(run.battery.longest)
    finally:
        for handle in handles:
            handle.remove()
    for name, value in seen[1].items():
        other = seen[0].get(name)
        if other is None or other.shape != value.shape:
            continue
        if share(other, value) > run.tolerance:
            return name
    return None


def _recorder(store: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        store[name] = (output[0] if isinstance(output, tuple) else output).detach()

    return record


def submodule(model: nn.Module, name: str) -> Any:
    """A module by its name; None if the model has none of it."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None

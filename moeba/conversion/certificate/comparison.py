"""Compare two causal language models by what they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ...configuration import MoebaConfig
from ...configuration.model_facts import layer_view
from ...library.upstream import (
    CACHE,
    attention,
    attention_of,
    cache_of,
    can_set_attention,
    has_cache,
    supports_sdpa,
)
from ..families import family_of
from .battery import Battery
from .measures import difference, largest, oddity, share
from .padding import PADDINGS, NoRoomError, padded_logits, padded_tokens
from .report import Check, Status
from .training import AMPLIFIED, NoLossError, has_own_router_loss, own_loss, training_logits

# Largest difference of logits, as a share of their standard deviation, that rounding can explain.
EXACT = 2e-6
REORDERED = 2e-5  # sums over several experts, or products of another shape


class Comparison:
    """Runs both models on a battery and collects one check a subject.

    Args:
        source, target: models in float32 and eval mode.
        tolerance: see `EXACT` and `REORDERED`.
        on: which weights these are, for the report.
        trains_otherwise: why the two need not agree where something is dropped out; see `Family`.
        rebuilt: the experts of the one were made of the feed-forwards of the other, and balance for themselves.
    """

    def __init__(
        self,
        source: PreTrainedModel,
        target: PreTrainedModel,
        battery: Battery,
        tolerance: float,
        on: str,
        trains_otherwise: str = "",
        rebuilt: bool = False,
    ) -> None:
        self.source, self.target, self.battery = source, target, battery
        self.tolerance, self.on, self.trains_otherwise = tolerance, on, trains_otherwise
        self.rebuilt = rebuilt

    def run(self) -> list[Check]:
        """Every check."""
        checks = []
        attentions = implementations(self.source, self.target)
        for implementation in attentions:
            with attention(implementation, self.source, self.target):
                checks.append(self.logits(f"logits, {implementation} attention"))
        with attention(attentions[0], self.source, self.target):
            checks += [
                self.hidden_states(),
                self.gradients(),
                self.cache(),
                self.left_padding(),
                self.padded_batches(),
                self.far_positions(),
                self.greedy(),
                self.greedy_batch(),
                self.training(),
            ]
            checks += [*self.losses(), self.router()]
        return checks

    def largest_difference(self) -> tuple[float, float]:
        """Largest difference of logits over the battery, absolute and as a share of their spread."""
        worst, relative = 0.0, 0.0
        for ids, a in zip(self.battery.inputs, self._source_logits, strict=True):
            with torch.no_grad():
                b = self.target(ids).logits.double()
            worst, relative = max(worst, difference(a, b)), max(relative, share(a, b))
        return worst, relative

    def logits(self, name: str) -> Check:
        """Largest and mean difference, KL divergence, and agreement of the most likely token."""
        worst, relative, mean, kl, agree = 0.0, 0.0, 0.0, 0.0, 1.0
        told = f"lengths {self.battery.lengths}"
        for ids in self.battery.inputs:
            with torch.no_grad():
                a, b = self.source(ids).logits.double(), self.target(ids).logits.double()
            if reason := oddity(a, b):
                told = f"{told}; {reason}"
            worst, relative = max(worst, difference(a, b)), max(relative, share(a, b))
            mean = max(mean, difference(a, b, torch.mean))
            divergence = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none")
            kl = max(kl, largest(divergence.sum(-1)))
            agree = min(agree, (a.argmax(-1) == b.argmax(-1)).double().mean().item())
        figures = {
            "max_abs": worst,
            "mean_abs": mean,
            "relative_to_spread": relative,
            "kl": kl,
            "top1": agree,
        }
        figures["bitwise"] = worst == 0.0
        return self._check(name, relative, figures, told)

    def hidden_states(self) -> Check:
        """Difference after each layer, as a share of that layer's spread."""
        with torch.no_grad():
            ours = [
                model(self.battery.longest, output_hidden_states=True).hidden_states for model in self._pair
            ]
        by_layer = [share(a, b) for a, b in zip(*ours, strict=True)]
        return self._check("hidden states", max(by_layer), {"worst": max(by_layer), "by_layer": by_layer})

    def gradients(self) -> Check:
        """The cross-entropy's gradient at the token embeddings, relative to its norm."""
        gradients = []
        for model in self._pair:
            weight = model.get_input_embeddings().weight
            logits = model(self.battery.longest, use_cache=False).logits
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), self.battery.longest[:, 1:].flatten()
            )
            gradients.append(torch.autograd.grad(loss, weight)[0])
        a, b = gradients
        # No number where one of them is not finite: `_check` takes that for a failure.
        relative = ((a - b).norm() / a.norm().clamp(min=1e-30)).item()
        return self._check("gradient", relative, {"relative": relative})

    def cache(self) -> Check:
        """The last tokens one by one through the KV cache: both models alike, and the target like itself uncached."""
        without = [model for model in self._pair if not has_cache(model.forward)]
        if without:  # only a model whose config knows no cache may lack one: a proof must not shrink
            status: Status = (
                "failed" if any(hasattr(m.config, "use_cache") for m in without) else "not applicable"
            )
            return Check("KV cache", status, detail="not both models have one", on=self.on)
        ids = self.battery.longest
        steps = min(4, ids.shape[1] - 1)
        cached = []
        with torch.no_grad():
            for model in self._pair:
                out = model(ids[:, : ids.shape[1] - steps], use_cache=True)
                pieces = [out.logits]
                for position in range(ids.shape[1] - steps, ids.shape[1]):
                    out = model(ids[:, position : position + 1], use_cache=True, **{CACHE: cache_of(out)})
                    pieces.append(out.logits)
                cached.append(torch.cat(pieces, dim=1))
            whole = self.target(ids, use_cache=False).logits
            # Rope types that change with the length legitimately differ between one pass and many.
            source_whole = self.source(ids, use_cache=False).logits
        a, b = cached
        against_source, own, source_own = share(a, b), share(whole, b), share(source_whole, a)
        figures = {
            "against_source": against_source,
            "against_uncached": own,
            "source_against_uncached": source_own,
        }
        worst = against_source if source_own == float("inf") else max(against_source, own - source_own - 1e-4)
        return self._check("KV cache", worst, figures)

    def left_padding(self) -> Check:
        """A ragged batch padded on the left, compared at its real tokens."""
        ids = self.battery.longest
        mask = torch.ones_like(ids)
        mask[1, : ids.shape[1] // 2] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            a, b = (
                model(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
                for model in self._pair
            )
        relative = share(a, b)
        return self._check("left padding", relative, {"relative_to_spread": relative})

    def padded_batches(self) -> Check:
        """Ragged batches padded on either side, whose positions the models take from the mask or from nowhere."""
        figures = {}
        for side in PADDINGS:
            a, b = (padded_logits(model, self.battery.longest, side) for model in self._pair)
            figures[side] = share(a, b)
        return self._check("padded batch without positions", max(figures.values()), figures)

    def far_positions(self) -> Check:
        """A few tokens at the last positions, behind those from which on rope turns otherwise."""
        positions = self.battery.far
        if positions is None:
            return Check("far positions", "not applicable", detail="there is no rope", on=self.on)
        ids = self.battery.longest[:, : positions.shape[1]]
        with torch.no_grad():
            a, b = (model(ids, position_ids=positions, use_cache=False).logits for model in self._pair)
        relative = share(a, b)
        figures = {"from": int(positions[0, 0]), "relative_to_spread": relative}
        return self._check("far positions", relative, figures)

    def greedy(self) -> Check:
        """The same tokens from `generate()`."""
        prompt = self.battery.longest[:1, : max(1, self.battery.longest.shape[1] // 2)]
        room = self.battery.longest.shape[1] - prompt.shape[1]
        if room < 1:
            return Check("greedy tokens", "not applicable", detail="no room for a new token", on=self.on)
        settings: dict[str, Any] = {"max_new_tokens": min(8, room), "do_sample": False, "pad_token_id": 0}
        settings["eos_token_id"] = None
        settings["use_mtp"] = (
            False  # which a config.json may ask for, though the layers for it are never loaded
        )
        mask = torch.ones_like(prompt)
        a, b = (model.generate(prompt, attention_mask=mask, **settings) for model in self._pair)
        return self._check(
            "greedy tokens", 0.0 if torch.equal(a, b) else float("inf"), {"tokens": int(a.shape[1])}
        )

    def greedy_batch(self) -> Check:
        """The same tokens from `generate()` for prompts of two lengths, the shorter one padded on the left."""
        try:
            a, b = (padded_tokens(model, self.battery.longest) for model in self._pair)
        except NoRoomError as error:
            return Check("greedy tokens of a batch", "not applicable", detail=str(error), on=self.on)
        same = torch.equal(a, b)
        figures = {"tokens": int(a.numel()), "same": (a == b).double().mean().item()}
        return self._check("greedy tokens of a batch", 0.0 if same else float("inf"), figures)

    def training(self) -> Check:
        """Logits in train mode: both models draw what they drop out from the same seed, in the same order."""
        relative = self.training_difference()
        figures = {"relative_to_spread": relative}
        if self.trains_otherwise and relative > AMPLIFIED * self.tolerance:
            return Check("training", "unverified", figures, self.trains_otherwise, self.on)
        return self._check("training", relative / AMPLIFIED, figures)

    def losses(self) -> list[Check]:
        """The models' own `.loss`: in evaluation, in training with seeded dropout, and beside router logits."""
        kinds: list[tuple[str, bool, bool | None]] = [
            ("loss in evaluation", False, None),
            ("loss in training", True, None),
        ]
        if all(map(has_experts, self._pair)):
            kinds.append(("loss with router logits", False, True))
        return [self._loss(*kind) for kind in kinds]

    def _loss(self, name: str, train: bool, router_logits: bool | None) -> Check:
        # A source whose routers balance themselves may become a model that stock transformers trains; never the
        # other way round, except where the feed-forwards are new.
        own = [has_own_router_loss(model) for model in self._pair]
        shown = router_logits or any(
            getattr(model.config, "output_router_logits", False) for model in self._pair
        )
        if own[0] != own[1] and (own[0] or self.trains_otherwise) and (train or shown):
            detail = "one side alone has router losses, as its config says"
            return Check(name, "not applicable", detail=detail, on=self.on)
        if self.rebuilt and shown:
            detail = "other experts have another balance loss"
            return Check(name, "not applicable", detail=detail, on=self.on)
        try:
            a, b = (own_loss(model, self.battery.longest, train, router_logits) for model in self._pair)
        except NoLossError as error:
            return Check(name, "not applicable", detail=str(error), on=self.on)
        relative, figures = abs(a - b) / max(1.0, abs(a)), {"source": a, "target": b}
        if train and self.trains_otherwise and relative > AMPLIFIED * self.tolerance:
            return Check(name, "unverified", figures, self.trains_otherwise, self.on)
        return self._check(name, relative / AMPLIFIED, figures)

    def loss_difference(self) -> float:
        """The difference of the models' own loss beside router logits."""
        a, b = (own_loss(model, self.battery.longest, router_logits=True) for model in self._pair)
        return abs(a - b)

    def training_difference(self) -> float:
        """The largest difference of logits in train mode, as a share of their spread."""
        a, b = (training_logits(model, self.battery.longest) for model in self._pair)
        return share(a, b)

    def router(self) -> Check:
        """Logits and chosen experts of every router, where both models have routers."""
        if not all(has_experts(model) for model in self._pair):
            return Check(
                "router choices", "not applicable", detail="not both models have experts", on=self.on
            )
        with torch.no_grad():
            first, second = (
                model(self.battery.longest, output_router_logits=True).router_logits for model in self._pair
            )
        if not first or len(first) != len(second) or first[0].shape != second[0].shape:
            return Check(
                "router choices", "not applicable", detail="the routers have other shapes", on=self.on
            )
        worst = max(share(a, b) for a, b in zip(first, second, strict=True))
        agree = [
            (a.topk(k)[1].sort(-1)[0] == b.topk(k)[1].sort(-1)[0]).all(-1).float().mean().item()
            for k, a, b in zip(self._experts_per_token(), first, second, strict=True)
        ]
        return self._check("router choices", worst, {"logits_relative": worst, "same_experts": min(agree)})

    def _experts_per_token(self) -> list[int]:
        """Of each sparse layer; in Moeba's terms, as native configs say it in many ways."""
        ours: Any = self.target.config
        if not isinstance(ours, MoebaConfig):
            ours = family_of(ours.model_type).to_moeba(ours)
        return [layer_view(ours, i).num_experts_per_tok for i in ours.sparse_layers]

    @cached_property
    def _source_logits(self) -> list[torch.Tensor]:
        with torch.no_grad():
            return [self.source(ids).logits.double() for ids in self.battery.inputs]

    @property
    def _pair(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        return self.source, self.target

    def _check(self, name: str, relative: float, figures: dict[str, Any], detail: str = "") -> Check:
        status = "verified" if relative <= self.tolerance else "failed"
        return Check(name, status, figures, detail, self.on)  # type: ignore[arg-type]


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
    return (
        noise if noise < float("inf") else 0.0
    )  # of no model that computes numbers: nothing may hide behind it


def first_divergence(
    source: PreTrainedModel,
    target: PreTrainedModel,
    ids: torch.Tensor,
    pairs: Sequence[tuple[str, str]],
    tolerance: float,
) -> str | None:
    """Name of the first module, in the target's order of execution, whose output differs.

    Args:
        pairs: `(module in source, module in target)` that should compute the same.
    """
    seen: list[dict[str, torch.Tensor]] = [{}, {}]
    handles = []
    for side, model in enumerate((source, target)):
        for pair in pairs:
            module = submodule(model, pair[side])
            if module is not None:
                handles.append(module.register_forward_hook(_recorder(seen[side], pair[1])))
    try:
        with torch.no_grad():
            source(ids)
            target(ids)
    finally:
        for handle in handles:
            handle.remove()
    for name, value in seen[1].items():
        other = seen[0].get(name)
        if other is None or other.shape != value.shape:
            continue
        if share(other, value) > tolerance:
            return name
    return None


def _recorder(store: dict[str, torch.Tensor], name: str) -> Callable:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        store[name] = (output[0] if isinstance(output, tuple) else output).detach()

    return record


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    """A module by its name; None if the model has none of it."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None

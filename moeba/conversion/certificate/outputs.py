"""Checks of what two models make of a text in one pass: logits, hidden states, gradients, routers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ...configuration import MoebaConfig
from ...configuration.model_facts import layer_view
from ...library.torch_internals import weight_of
from ...library.upstream import attention
from ..families import family_of
from .measures import difference, largest, oddity, share
from .report import Check
from .run import Run, implementations


def logits_by_attention(run: Run) -> Iterator[Check]:
    """The logits, with every kind of attention that both models can run."""
    for implementation in implementations(*run.models):
        with attention(implementation, *run.models):
            yield logits(run, f"logits, {implementation} attention")


def logits(run: Run, name: str = "logits") -> Check:
    """Largest and mean difference, KL divergence, and agreement of the most likely token."""
    worst, relative, mean, kl, agree = 0.0, 0.0, 0.0, 0.0, 1.0
    told = f"lengths {run.battery.lengths}"
    for ids in run.battery.inputs:
        with torch.no_grad():
            a, b = (model(ids).logits.double() for model in run.models)
        if reason := oddity(a, b):
            told = f"{told}; {reason}"
        worst, relative = max(worst, difference(a, b)), max(relative, share(a, b))
        mean = max(mean, difference(a, b, torch.mean))
        divergence = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none")
        kl = max(kl, largest(divergence.sum(-1)))
        agree = min(agree, (a.argmax(-1) == b.argmax(-1)).double().mean().item())
    figures = {"max_abs": worst, "mean_abs": mean, "relative_to_spread": relative, "kl": kl, "top1": agree}
    return run.judged(name, relative, {**figures, "bitwise": worst == 0.0}, told)


def largest_difference(run: Run) -> tuple[float, float]:
    """Largest difference of logits over the battery, absolute and as a share of their spread."""
    worst, relative = 0.0, 0.0
    for ids, a in zip(run.battery.inputs, run.source_logits, strict=True):
        with torch.no_grad():
            b = run.target(ids).logits.double()
        worst, relative = max(worst, difference(a, b)), max(relative, share(a, b))
    return worst, relative


def hidden_states(run: Run) -> Iterator[Check]:
    """Difference after each layer, as a share of that layer's spread."""
    with torch.no_grad():
        found = [model(run.battery.longest, output_hidden_states=True).hidden_states for model in run.models]
    by_layer = [share(a, b) for a, b in zip(*found, strict=True)]
    yield run.judged("hidden states", max(by_layer), {"worst": max(by_layer), "by_layer": by_layer})


def gradients(run: Run) -> Iterator[Check]:
    """The cross-entropy's gradient at the token embeddings, relative to its norm."""
    found = []
    for model in run.models:
        weight = weight_of(model.get_input_embeddings())
        made = model(run.battery.longest, use_cache=False).logits
        loss = F.cross_entropy(made[:, :-1].flatten(0, 1).float(), run.battery.longest[:, 1:].flatten())
        found.append(torch.autograd.grad(loss, weight)[0])
    a, b = found
    # No number where one of them is not finite: that is taken for a failure.
    relative = ((a - b).norm() / a.norm().clamp(min=1e-30)).item()
    yield run.judged("gradient", relative, {"relative": relative})


def router_choices(run: Run) -> Iterator[Check]:
    """Logits and chosen experts of every router, where both models have routers."""
    name = "router choices"
    if not run.both_have_experts:
        yield run.not_applicable(name, "not both models have experts")
        return
    with torch.no_grad():
        first, second = (
            model(run.battery.longest, output_router_logits=True).router_logits for model in run.models
        )
    if not first or len(first) != len(second) or first[0].shape != second[0].shape:
        yield run.not_applicable(name, "the routers have other shapes")
        return
    worst = max(share(a, b) for a, b in zip(first, second, strict=True))
    agree = [
        (a.topk(k)[1].sort(-1)[0] == b.topk(k)[1].sort(-1)[0]).all(-1).float().mean().item()
        for k, a, b in zip(_experts_per_token(run), first, second, strict=True)
    ]
    yield run.judged(name, worst, {"logits_relative": worst, "same_experts": min(agree)})


def _experts_per_token(run: Run) -> list[int]:
    """Of each sparse layer; in Moeba's terms, as native configs say it in many ways."""
    config = run.target.config
    ours = config if isinstance(config, MoebaConfig) else family_of(config.model_type).to_moeba(config)
    return [layer_view(ours, i).num_experts_per_tok for i in ours.sparse_layers]

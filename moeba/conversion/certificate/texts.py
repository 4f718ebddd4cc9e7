"""Checks of texts as they are used: through the cache, in batches of two lengths, far from the start, and generated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from ...library.upstream import CACHE, cache_of, generated, has_cache
from .measures import share
from .report import Check
from .run import Run

PADDINGS = ("left", "right")
_PROMPT, _NEW_TOKENS = 24, 3


def cache(run: Run) -> Iterator[Check]:
    """The last tokens one by one through the KV cache: both models alike, and the target like itself uncached."""
    name = "KV cache"
    without = [model for model in run.models if not has_cache(model.forward)]
    if without:  # only a model whose config knows no cache may lack one: a proof must not shrink
        why = "not both models have one"
        failed = any(hasattr(model.config, "use_cache") for model in without)
        yield Check(name, "failed", detail=why, on=run.on) if failed else run.not_applicable(name, why)
        return
    ids = run.battery.longest
    steps = min(4, ids.shape[1] - 1)
    cached = []
    with torch.no_grad():
        for model in run.models:
            out = model(ids[:, : ids.shape[1] - steps], use_cache=True)
            pieces = [out.logits]
            for position in range(ids.shape[1] - steps, ids.shape[1]):
                out = model(ids[:, position : position + 1], use_cache=True, **{CACHE: cache_of(out)})
                pieces.append(out.logits)
            cached.append(torch.cat(pieces, dim=1))
        # Rope types that change with the length legitimately differ between one pass and many.
        source_whole, whole = (model(ids, use_cache=False).logits for model in run.models)
    a, b = cached
    against_source, own, source_own = share(a, b), share(whole, b), share(source_whole, a)
    figures = {
        "against_source": against_source,
        "against_uncached": own,
        "source_against_uncached": source_own,
    }
    worst = against_source if source_own == float("inf") else max(against_source, own - source_own - 1e-4)
    yield run.judged(name, worst, figures)


def left_padding(run: Run) -> Iterator[Check]:
    """A ragged batch padded on the left, compared at its real tokens."""
    ids = run.battery.longest
    mask = _mask(ids, "left")
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        a, b = (
            model(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
            for model in run.models
        )
    relative = share(a, b)
    yield run.judged("left padding", relative, {"relative_to_spread": relative})


def padded_batches(run: Run) -> Iterator[Check]:
    """Ragged batches padded on either side, whose positions the models take from the mask or from nowhere."""
    figures = {}
    for side in PADDINGS:
        a, b = (padded_logits(model, run.battery.longest, side) for model in run.models)
        figures[side] = share(a, b)
    yield run.judged("padded batch without positions", max(figures.values()), figures)


def far_positions(run: Run) -> Iterator[Check]:
    """A few tokens at the last positions, behind those from which on rope turns otherwise."""
    name, positions = "far positions", run.battery.far
    if positions is None:
        yield run.not_applicable(name, "there is no rope")
        return
    ids = run.battery.longest[:, : positions.shape[1]]
    with torch.no_grad():
        a, b = (model(ids, position_ids=positions, use_cache=False).logits for model in run.models)
    relative = share(a, b)
    yield run.judged(name, relative, {"from": int(positions[0, 0]), "relative_to_spread": relative})


def greedy(run: Run) -> Iterator[Check]:
    """The same tokens from `generate()`."""
    name = "greedy tokens"
    prompt = run.battery.longest[:1, : max(1, run.battery.longest.shape[1] // 2)]
    room = run.battery.longest.shape[1] - prompt.shape[1]
    if room < 1:
        yield run.not_applicable(name, "no room for a new token")
        return
    # Layers for several tokens at once, which a config.json may ask for, are never loaded.
    settings: dict[str, Any] = {"max_new_tokens": min(8, room), "eos_token_id": None, "use_mtp": False}
    mask = torch.ones_like(prompt)
    a, b = (
        generated(model, prompt, attention_mask=mask, do_sample=False, pad_token_id=0, **settings)
        for model in run.models
    )
    yield run.judged(name, 0.0 if torch.equal(a, b) else float("inf"), {"tokens": int(a.shape[1])})


def greedy_batch(run: Run) -> Iterator[Check]:
    """The same tokens from `generate()` for prompts of two lengths, the shorter one padded on the left."""
    name = "greedy tokens of a batch"
    try:
        a, b = (padded_tokens(model, run.battery.longest) for model in run.models)
    except NoRoomError as error:
        yield run.not_applicable(name, str(error))
        return
    figures = {"tokens": int(a.numel()), "same": (a == b).double().mean().item()}
    yield run.judged(name, 0.0 if torch.equal(a, b) else float("inf"), figures)


class NoRoomError(ValueError):
    """The model's positions end before a token could be added."""


def padded_logits(model: PreTrainedModel, ids: torch.Tensor, side: str) -> torch.Tensor:
    """Logits at the real tokens, `[tokens, vocabulary]`, of rows of which the second is half padding on one side."""
    mask = _mask(ids, side)
    with torch.no_grad():
        real: torch.Tensor = model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
    return real


def padded_tokens(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The likeliest continuations of prompts padded on the left, `[rows, at most 3]`.

    Raises:
        NoRoomError: the rows are too short to be cut into prompt and continuation.
    """
    new = min(_NEW_TOKENS, ids.shape[1] // 2)
    if new < 1:
        raise NoRoomError("no room for a new token")
    prompts = ids[:, :-new][:, :_PROMPT]
    # Layers for several tokens at once, which a config.json may ask for, are never loaded.
    settings = {"use_mtp": False} if hasattr(model.generation_config, "use_mtp") else {}
    with _without_router_logits(model):
        found = generated(
            model,
            prompts,
            attention_mask=_mask(prompts, "left"),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            **settings,
        )
    return found[:, prompts.shape[1] :]


@contextmanager
def _without_router_logits(model: PreTrainedModel) -> Iterator[None]:
    """Stock models make a balance loss of them, which fails for a step of `generate()` beside the mask of a batch."""
    shown = getattr(model.config, "output_router_logits", None)
    if shown:
        model.config.output_router_logits = False
    try:
        yield
    finally:
        if shown:
            model.config.output_router_logits = shown


def _mask(ids: torch.Tensor, side: str) -> torch.Tensor:
    mask = torch.ones_like(ids)
    half = ids.shape[1] // 2
    mask[1, slice(half) if side == "left" else slice(ids.shape[1] - half, None)] = 0
    return mask

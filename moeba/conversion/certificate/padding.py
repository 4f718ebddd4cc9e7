"""Batches of texts of two lengths, as a tokenizer pads them: with a mask, and without positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

PADDINGS = ("left", "right")
_PROMPT, _NEW_TOKENS = 24, 3


class NoRoomError(ValueError):
    """The model's positions end before a token could be added."""


def padded_logits(model: PreTrainedModel, ids: torch.Tensor, side: str) -> torch.Tensor:
    """Logits at the real tokens, `[tokens, vocabulary]`, of rows of which the second is half padding on one side."""
    mask = _mask(ids, side)
    with torch.no_grad():
        return model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]


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
        found = model.generate(
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

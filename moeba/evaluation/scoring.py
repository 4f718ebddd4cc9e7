"""The log-likelihood that a model gives to the scored tokens of windows, batch by batch.

Windows of different lengths share a batch: padding stands behind the tokens and is masked, so that positions are
those of a window read alone, and a causal model does not see it. Logits are taken to float32 before the softmax.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from .windows import Window

SORTED_BATCHES = 16  # so many batches are ordered by length together, which saves padding


@dataclass(frozen=True)
class Score:
    """What a model made of one window: the sum over its scored tokens.

    Attributes:
        log_likelihood: natural logarithm.
        correct: how many of them were the likeliest token; the first one where several are.
    """

    window: Window
    log_likelihood: float
    correct: int


def score(model: nn.Module, windows: Iterable[Window], batch_size: int) -> Iterator[Score]:
    """Score every window once, in any order; windows are drawn as they are needed.

    Raises:
        ValueError: the logits of a scored token are NaN or rule it out altogether.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    windows = iter(windows)
    with _evaluating(model):
        while some := list(islice(windows, batch_size * SORTED_BATCHES)):
            some.sort(key=lambda window: len(window.tokens), reverse=True)
            for first in range(0, len(some), batch_size):
                yield from _score_batch(model, some[first : first + batch_size])


def check_causal(model: nn.Module, vocab_size: int) -> None:
    """Refuse a model whose predictions depend on what follows: perplexity would say nothing.

    Raises:
        ValueError: changing the last of eight tokens moved the logits at those before it.
    """
    tokens = torch.arange(1, 9).remainder(vocab_size).repeat(2, 1)
    tokens[1, -1] = 0
    with _evaluating(model), torch.inference_mode():
        logits = _forward(model, tokens, torch.ones_like(tokens)).float()[:, :-1]
    # Rounding is orders of magnitude below this, and what sees the future is far above.
    if (logits[0] - logits[1]).abs().max() > 0.02 * logits.std():
        raise ValueError(f"{_name(model)} sees the tokens it should predict: it is no causal language model")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def _score_batch(model: nn.Module, windows: list[Window]) -> list[Score]:
    # The last token of a window is only predicted, and never read.
    lengths = [len(window.tokens) - 1 for window in windows]
    tokens = torch.zeros(len(windows), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, (window, length) in enumerate(zip(windows, lengths, strict=True)):
        tokens[row, :length] = torch.tensor(window.tokens[:-1])
        mask[row, :length] = 1
    skipped = min(length - window.scored for window, length in zip(windows, lengths, strict=True))
    logits = _forward(model, tokens, mask, keep=tokens.shape[1] - skipped)
    skipped = tokens.shape[1] - logits.shape[1]
    scores = []
    for row, (window, length) in enumerate(zip(windows, lengths, strict=True)):
        chosen = logits[row, length - window.scored - skipped : length - skipped].float()
        targets = torch.tensor(window.tokens[-window.scored :], device=chosen.device)
        found = chosen.log_softmax(-1).gather(-1, targets[:, None]).double().sum().item()
        if not math.isfinite(found):
            raise ValueError(
                f"{_name(model)} computes NaN, or rules a token of the text out: its log-likelihood is {found}. "
                "Try another dtype, such as float32 or bfloat16"
            )
        scores.append(Score(window, found, int((chosen.argmax(-1) == targets).sum())))
    return scores


def _forward(model: nn.Module, tokens: torch.Tensor, mask: torch.Tensor, keep: int = 0) -> torch.Tensor:
    """Logits `[batch, places, vocabulary]`: of the last `keep` places where the model can leave the rest out."""
    device = next(model.parameters()).device
    arguments: dict[str, Any] = {"attention_mask": mask.to(device)}
    if keep and "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments["logits_to_keep"] = keep
    return model(input_ids=tokens.to(device), use_cache=False, **arguments).logits


def _name(model: nn.Module) -> str:
    return getattr(model, "name_or_path", None) or "the model"

"""The same figures as a metric of the `evaluate` library, and for a Trainer's evaluation loop.

`evaluate.load` fetches code from the Hub; this metric is in the package, and needs no network:

    metric = LanguageModelingMetric()
    metric.add_batch(log_likelihood=[-12.5, -3.1], correct=[2, 1], tokens=[4, 2], bytes=[17, 6])
    metric.compute()                        # perplexity, bits_per_byte, token_accuracy, …

    Trainer(..., preprocess_logits_for_metrics=token_scores, compute_metrics=compute_metrics)
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from transformers import EvalPrediction

from .language_modeling import Tally

IGNORED = -100  # the label of tokens that do not count, as everywhere in transformers

_DESCRIPTION = """How well a causal language model predicts text: perplexity of a token, bits for each byte of text,
and the share of tokens that were the likeliest."""
_INPUTS = """
Args:
    log_likelihood: of each document, the sum of its predicted tokens' natural log-likelihoods.
    correct: how many of them were the likeliest token.
    tokens: how many were predicted.
    bytes: of UTF-8 text that they spell; 0 where it is not known, and then no bits per byte are computed.
"""


class LanguageModelingMetric(evaluate.Metric):
    """Sums over documents, in whatever batches they come. Arguments are those of `evaluate.Metric`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "log_likelihood": datasets.Value("float64"),
                    "correct": datasets.Value("int64"),
                    "tokens": datasets.Value("int64"),
                    "bytes": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, log_likelihood: Any, correct: Any, tokens: Any, bytes: Any) -> dict[str, Any]:
        is_known = all(bytes)
        tally = Tally(sum(log_likelihood), sum(tokens), sum(correct), sum(bytes) if is_known else None)
        return {**tally.metrics(), **tally.counts()}


def token_scores(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """A Trainer's `preprocess_logits_for_metrics`: two numbers a token are kept instead of a vocabulary of logits.

    Returns:
        `[batch, tokens, 2]` in float32: the log-likelihood of the token that a place predicts, and 1 where it is
        the likeliest. The last place predicts nothing: zeros.
    """
    if isinstance(logits, tuple):  # a model with experts puts its router's loss before them
        logits = next(part for part in logits if isinstance(part, torch.Tensor) and part.dim() == 3)
    targets = labels[:, 1:]
    scores = torch.zeros(*labels.shape, 2, device=logits.device)
    for row, (found, target) in enumerate(zip(logits[:, :-1], targets, strict=True)):
        chosen = found.float().log_softmax(-1).gather(-1, target.clamp(min=0)[:, None])[:, 0]
        scores[row, :-1, 0] = chosen
        scores[row, :-1, 1] = (found.argmax(-1) == target).float()
    return scores


def compute_metrics(prediction: EvalPrediction) -> dict[str, Any]:
    """A Trainer's `compute_metrics`, over what `token_scores` kept: labels of -100 do not count."""
    scores, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    counts = labels[:, 1:] != IGNORED
    log_likelihood, correct = (
        np.where(counts, scores[:, :-1, i], 0).sum(1, dtype=np.float64) for i in (0, 1)
    )
    metric = LanguageModelingMetric(keep_in_memory=True)
    figures = metric.compute(
        log_likelihood=log_likelihood,
        correct=correct.astype(np.int64),
        tokens=counts.sum(1),
        bytes=np.zeros(len(counts), dtype=np.int64),
    )
    return {name: value for name, value in figures.items() if value is not None}

"""How well a model predicts text: perplexity, bits per byte and next-token accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from .scoring import score
from .windows import Window, sliding_windows

BATCH = 8


@dataclass
class Tally:
    """Sums over predicted tokens, which all weigh the same.

    Attributes:
        log_likelihood: natural logarithm.
        correct: predicted tokens that were the likeliest.
        nbytes: UTF-8 bytes of the text that the predicted tokens spell; None where that is not known.
    """

    log_likelihood: float = 0.0
    tokens: int = 0
    correct: int = 0
    nbytes: int | None = None

    @property
    def loss(self) -> float:
        """The mean negative log-likelihood of a token.

        Raises:
            ValueError: no token was predicted.
        """
        if not self.tokens:
            raise ValueError("no token was predicted: every document is empty, or a single token")
        return -self.log_likelihood / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def metrics(self) -> dict[str, float | None]:
        """Perplexity is a token's, and compares models of one tokenizer; bits per byte compare any models."""
        return {
            "perplexity": self.perplexity,
            "loss": self.loss,
            "bits_per_byte": -self.log_likelihood / (math.log(2) * self.nbytes) if self.nbytes else None,
            "token_accuracy": self.correct / self.tokens,
        }

    def counts(self) -> dict[str, int | None]:
        return {"tokens": self.tokens, "bytes": self.nbytes}


def perplexity(model: nn.Module, windows: Sequence[Sequence[int]], batch_size: int = BATCH) -> float:
    """exp of the mean negative log-likelihood over all predicted tokens of windows that do not overlap.

    The first token of a window has nothing before it and is not predicted. Every token weighs the same.

    Args:
        windows: token ids, at least 2 in each.
    """
    tally = Tally()
    for found in score(model, (Window(tokens, len(tokens) - 1) for tokens in windows), batch_size):
        tally.log_likelihood += found.log_likelihood
        tally.tokens += found.window.scored
    return tally.perplexity


def score_documents(
    model: nn.Module,
    encode: Callable[[str], list[int]],
    documents: Iterable[str],
    *,
    window: int,
    stride: int,
    start: Sequence[int],
    batch_size: int = BATCH,
    progress: Callable[[int], None] | None = None,
) -> Tally:
    """The sums over all documents; no context is carried from one to the next.

    Args:
        encode: token ids of a text, without start tokens.
        progress: called with the bytes of text that are done.
    """
    # Only with start tokens is every token predicted, and only then are the bytes known that go with them.
    tally = Tally(nbytes=0 if start else None)

    def windows() -> Iterator[Window]:
        for text in documents:
            tokens, nbytes = encode(text), len(text.encode())
            if tally.nbytes is not None:
                tally.nbytes += nbytes
            yield from sliding_windows(tokens, window, stride, start, nbytes / max(1, len(tokens)))

    read = 0.0
    for found in score(model, windows(), batch_size):
        tally.log_likelihood += found.log_likelihood
        tally.correct += found.correct
        tally.tokens += found.window.scored
        read += found.window.scored * found.window.origin
        if progress:
            progress(round(read))
    return tally

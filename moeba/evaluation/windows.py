"""Long texts cut into windows that a model can read, each token predicted once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Window:
    """One input of the model. Its last `scored` tokens are predicted, each from all tokens before it.

    Attributes:
        tokens: ids, context first.
        scored: how many tokens at the end count; fewer than all, since the first has nothing before it.
        origin: whatever tells the caller where the window comes from.
    """

    tokens: Sequence[int]
    scored: int
    origin: Any = None


def sliding_windows(
    tokens: Sequence[int], window: int, stride: int, start: Sequence[int] = (), origin: Any = None
) -> Iterator[Window]:
    """Windows over one document that together predict each of its tokens exactly once.

    Each window begins with the start tokens, which are context only. The first one then holds as much of the
    document as fits, all of it predicted. Each further one moves on by `stride` tokens, predicts these, and
    carries the tokens before them as context: every token is predicted from the start tokens and at least
    `window - stride - len(start)` tokens of its document, or from all of them near its beginning. Without start
    tokens, the first token of the document has nothing before it and is not predicted.

    Args:
        window: most tokens of one window, start tokens and predicted ones included.
        stride: how many tokens a further window predicts.

    Raises:
        ValueError: no token would be left as context of a predicted one.
    """
    room = window - len(start)
    most = room if start else room - 1
    if not 1 <= stride <= most:
        raise ValueError(
            f"stride={stride} must be between 1 and {most}: a window of {window} tokens "
            + (f"begins with {len(start)} start tokens" if start else "needs one token of context")
        )
    done = 0 if start else 1
    end = min(room, len(tokens))
    while done < len(tokens):
        yield Window([*start, *tokens[max(0, end - room) : end]], end - done, origin)
        done, end = end, min(end + stride, len(tokens))

"""A Hub that takes a connection and says nothing is not waited for without end, as huggingface_hub would."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_session

_CONNECT = 10.0  # seconds
_QUESTION, _WORK = 20.0, 60.0  # seconds without a byte; a commit of many files takes the Hub some


def patience(work: bool = False) -> float:
    """How many seconds of silence a request waits for: HF_HUB_DOWNLOAD_TIMEOUT, where that is set.

    Args:
        work: it sends files or commits them, and is not only a question.
    """
    try:
        return float(os.environ["HF_HUB_DOWNLOAD_TIMEOUT"])
    except (KeyError, ValueError):
        return _WORK if work else _QUESTION


@contextmanager
def time_limits(work: bool = False) -> Iterator[None]:
    """Requests that set no limit of their own end with an error after `patience` seconds of silence."""
    session, seconds = get_session(), patience(work)
    before = session.timeout
    session.timeout = type(before)(seconds, connect=min(_CONNECT, seconds))
    try:
        yield
    finally:
        session.timeout = before


def is_silence(error: BaseException) -> bool:
    """Whether an error is that of such a limit."""
    return any(kind.__name__ == "TimeoutException" for kind in type(error).__mro__)

"""What is said once, whichever way a job begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from . import window

logger = logging.get_logger(__name__)


def say_untested() -> None:
    """Say once in a process that transformers is newer than the newest tested one, if it is."""
    if line := window.untested_transformers():
        logger.warning_once(line)


@contextmanager
def untested_is_known() -> Iterator[None]:
    """For whoever is about to find out, and is told the versions anyway."""
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False

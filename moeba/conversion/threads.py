"""How many threads torch computes with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# The number belongs to a thread of Python, but for MKL's, and for what a new thread begins with: those are everybody's.
_setting = threading.Lock()
_inside = 0  # blocks of all threads
_before = 1  # everybody's number outside of them
_here = threading.local()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, also where another thread of Python enters or leaves such a block meanwhile.

    For products so small that several threads only wait for each other, where others need the processor, and for what
    must come out the same bits on any machine: products and sums over several threads are added up in another order.
    """
    threads = _enter()
    try:
        yield
    finally:
        _leave(threads)


def _enter() -> int:
    """This thread's number so far."""
    global _inside, _before
    with _setting:
        threads = torch.get_num_threads()
        if _inside == 0:
            _before = threads
        elif getattr(_here, "depth", 0) == 0 and threads == 1:
            threads = _before  # this thread is new, and began with the number inside of another one's block
        _inside += 1
        _here.depth = getattr(_here, "depth", 0) + 1
        torch.set_num_threads(1)
        return threads


def _leave(threads: int) -> None:
    global _inside
    with _setting:
        _inside -= 1
        _here.depth -= 1
        torch.set_num_threads(threads)
        if _inside and threads != 1:  # everybody's stays what the others need
            setter = threading.Thread(target=torch.set_num_threads, args=(1,))
            setter.start()
            setter.join()

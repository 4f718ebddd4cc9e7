"""Run the demo: every step in order, or taken over from an earlier run, and a table at the end."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

import moeba

from ..conversion.paths import expanded
from .journal import Entry, Journal, key_of
from .settings import DemoSettings
from .steps import STEPS, Step, Workspace
from .watcher import Watcher


def run(
    folder: str | Path = "moeba-demo", settings: DemoSettings | None = None, watcher: Watcher | None = None
) -> list[Entry]:
    """Take the standard library's text to a certified mixture of experts and out again, in `folder`.

    What an earlier run of the same settings and the same program finished is taken over; a step that was cut
    off starts again.

    Returns:
        One entry a step, with its figures, its proof in one line, and its time.

    Raises:
        ValueError: `folder` holds something else, another run is at work in it, or a step failed to prove what it
            claims.
    """
    settings, watcher = settings or DemoSettings(), watcher or Watcher()
    root = expanded(folder)
    keys: dict[str, str] = {}
    done = []
    program = _program()
    with _all_cores(), Journal.opened(root) as journal:
        for number, step in enumerate(STEPS, start=1):
            inputs = [keys[name] for name in step.reads]
            keys[step.name] = key_of(step.name, asdict(settings), inputs, program)
            report = watcher.begins(number, len(STEPS), step.title)
            entry = journal.find(step.name, keys[step.name])
            reused = entry is not None
            if entry is None:
                entry = _do(step, keys[step.name], journal, Workspace(root, settings, report))
            watcher.ends(entry, reused)
            done.append(entry)
    return done


def _do(step: Step, key: str, journal: Journal, space: Workspace) -> Entry:
    journal.forget(step.name)
    started = time.perf_counter()
    outcome = step.run(space)
    entry = Entry(step.name, step.title, key, time.perf_counter() - started, outcome.proof, outcome.figures)
    journal.record(entry)
    return entry


def _program() -> dict[str, str]:
    """What decides the results beside settings: the libraries, and Moeba's own source."""
    digest = hashlib.sha256()
    root = Path(moeba.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return {
        "moeba": digest.hexdigest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@contextmanager
def _all_cores() -> Iterator[None]:
    """As many threads as this process may use cores; torch would take those of the whole machine."""
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)

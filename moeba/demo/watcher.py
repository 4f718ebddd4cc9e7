"""Whoever wants to hear how far a demo is."""

from __future__ import annotations

from collections.abc import Callable

from .journal import Entry

Report = Callable[[int, int, str], None]
"""`report(done, total, what)`, as the converter calls its progress."""


class Watcher:
    """Hears what a run does. This one keeps it to itself."""

    def begins(self, number: int, count: int, title: str) -> Report:
        """Step `number` of `count` starts; what this returns is told how far the step is."""
        return lambda done, total, what: None

    def ends(self, entry: Entry, reused: bool) -> None:
        """A step is done, now or, where `reused`, in an earlier run."""

"""Paths as people write them. Nothing is raised for the home of nobody, or for links in a circle: they lead nowhere."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """With a home folder for `~`."""
    return Path(os.path.expanduser(path))


def resolved(path: str | Path) -> Path:
    """The same, absolute, with every link followed."""
    return Path(os.path.realpath(expanded(path)))

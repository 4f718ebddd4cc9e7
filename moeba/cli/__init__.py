"""The `moeba` command: a thin layer over the Python API, one function a verb."""

from .app import main

__all__ = ["main"]

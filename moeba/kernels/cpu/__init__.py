"""Experts on CPU: C++ kernels, compiled for the machine when they are first used."""

from .function import obstacle, run

__all__ = ["obstacle", "run"]

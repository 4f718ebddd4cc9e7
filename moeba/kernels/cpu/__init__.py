"""Experts on CPU: C++ kernels, compiled for the machine when they are first used."""

from .build import absence
from .calls import grouped_gradient, grouped_product, release_scratch
from .function import multiplies, obstacle, run

__all__ = [
    "absence",
    "grouped_gradient",
    "grouped_product",
    "multiplies",
    "obstacle",
    "release_scratch",
    "run",
]

"""Random valid configs of each family: one module a family, or a group of families whose configs are alike.

A draw is a function `(rng, model_type) -> keyword arguments of the stock config class`. Its sizes are small (hidden
size up to 64, up to 3 layers, vocabulary up to 96), and every field that changes the function takes several valid
values, the default and others. Values at which the stock model itself fails are not drawn. Only `rng` is random, so
that a seed repeats a config and Hypothesis can look for a smaller one.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable
from functools import partial
from typing import Any

Fields = dict[str, Any]

# model_type -> (rng) -> keyword arguments.
DRAWS: dict[str, Callable[[random.Random], Fields]] = {}


def draws(*model_types: str) -> Callable:
    """Register the decorated `(rng, model_type) -> fields` for these families."""

    def register(function: Callable[[random.Random, str], Fields]) -> Callable[[random.Random, str], Fields]:
        for model_type in model_types:
            assert model_type not in DRAWS, f"{model_type} has two draws"
            DRAWS[model_type] = partial(function, model_type=model_type)
        return function

    return register


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

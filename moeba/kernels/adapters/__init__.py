"""LoRA on experts held as 3-D tensors, computed on the tokens that visit them and never as a matrix an expert.

The names load when they are first used: they need `peft`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .grouping import group_adapters, ungroup_adapters

__all__ = ["group_adapters", "ungroup_adapters"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".grouping", __name__), name)

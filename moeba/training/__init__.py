"""What training a mixture of experts with the stock Trainer needs beside it: a view of its routers, their losses where
Trainer computes the loss itself, and LoRA on experts that does not compute every expert's matrix.

The names load when they are first used: the Trainer behind them takes a second to import, and adapters need `peft`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..kernels.adapters.grouping import group_adapters, ungroup_adapters
    from .losses import balanced_loss
    from .router_statistics import LayerStatistics, RouterStatistics, RouterStatisticsCallback

_HOMES = {
    "LayerStatistics": ".router_statistics",
    "RouterStatistics": ".router_statistics",
    "RouterStatisticsCallback": ".router_statistics",
    "balanced_loss": ".losses",
    "group_adapters": "..kernels.adapters.grouping",
    "ungroup_adapters": "..kernels.adapters.grouping",
}

__all__ = [
    "LayerStatistics",
    "RouterStatistics",
    "RouterStatisticsCallback",
    "balanced_loss",
    "group_adapters",
    "ungroup_adapters",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)

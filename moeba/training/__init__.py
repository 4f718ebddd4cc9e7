"""What training a mixture of experts with the stock Trainer needs beside it: a view of its routers.

The names load when they are first used: the Trainer behind them takes a second to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .router_statistics import LayerStatistics, RouterStatistics, RouterStatisticsCallback

__all__ = ["LayerStatistics", "RouterStatistics", "RouterStatisticsCallback"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".router_statistics", __name__), name)

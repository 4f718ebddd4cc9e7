"""What training a mixture of experts with the stock Trainer needs beside it: a view of its routers."""

from .router_statistics import LayerStatistics, RouterStatistics, RouterStatisticsCallback

__all__ = ["LayerStatistics", "RouterStatistics", "RouterStatisticsCallback"]

"""A path of the experts implementation that is watched."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch


class Spy:
    """A path that counts its runs and keeps the reasons why it did not run."""

    def __init__(self, path: ModuleType) -> None:
        self.path = path
        self.__name__ = path.__name__
        self.runs = 0
        self.reasons: list[str] = []

    def obstacle(self, *arguments: Any) -> str | None:
        reason = self.path.obstacle(*arguments)
        if reason is not None:
            self.reasons.append(reason)
        return reason

    def run(self, *arguments: Any) -> torch.Tensor:
        self.runs += 1
        return self.path.run(*arguments)

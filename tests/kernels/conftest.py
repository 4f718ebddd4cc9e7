"""Which computation runs behind the name "moeba" is chosen and watched here: nothing falls back unseen."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from moeba.kernels import composed, cpu, implementation, register_experts

MODULES: dict[str, ModuleType] = {"cpu": cpu, "composed": composed}


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


@pytest.fixture(autouse=True)
def registered():
    register_experts()


@pytest.fixture
def only(monkeypatch):
    """`only("cpu")`: the one path that there is; without it transformers' `grouped_mm` would run."""

    def choose(*names: str) -> list[Spy]:
        if "cpu" in names and isinstance(why := cpu.build.library(), str):
            pytest.skip(f"no CPU kernels: {why}")
        spies = [Spy(MODULES[name]) for name in names]
        monkeypatch.setitem(implementation.PATHS, "cpu", tuple(spies))
        return spies

    return choose


@pytest.fixture(params=list(MODULES))
def path(request, only):
    """A test runs on each path alone, and fails if that path did not run everything that was asked."""
    (spy,) = only(request.param)
    yield spy
    assert spy.runs and not spy.reasons, (
        f"{request.param} ran {spy.runs} times, and did not because {spy.reasons}"
    )


@pytest.fixture
def threads():
    """Set the number of threads with `torch.set_num_threads`; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)

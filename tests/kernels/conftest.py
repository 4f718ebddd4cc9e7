"""Which computation runs behind the name "moeba" is chosen and watched here: nothing falls back unseen."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from spies import Spy

from moeba.kernels import composed, cpu, implementation, register_experts

MODULES: dict[str, ModuleType] = {"cpu": cpu, "composed": composed}


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

"""Where Triton's kernels are tested: on a CUDA device if there is one, else in Triton's interpreter on the CPU.

Kernels choose between compiler and interpreter when they are imported, and nothing but these tests imports them on a
machine without a device: so it is enough to set `TRITON_INTERPRET` before the first test runs them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from expert_layers import Inputs, make_inputs, make_layer
from spies import Spy
from torch import nn

from moeba.kernels import gpu, implementation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def triton_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    """The kernels alone behind "moeba"; fails if they did not run everything that was asked."""
    pytest.importorskip("triton")
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    from moeba.kernels.gpu import tuning

    if (DEVICE == "cpu") != tuning.INTERPRETED:
        pytest.skip("the kernels were imported before, for the compiler")
    monkeypatch.setattr(gpu.settings, "autotune", os.environ.get("MOEBA_TEST_AUTOTUNE") == "1")
    spy = Spy(gpu)
    monkeypatch.setitem(implementation.PATHS, DEVICE, (spy,))
    yield spy
    assert spy.runs and not spy.reasons, (
        f"the kernels ran {spy.runs} times, and did not because {spy.reasons}"
    )


def layer_on_device(*arguments: Any, **options: Any) -> nn.Module:
    """`make_layer`, where the kernels run."""
    return make_layer(*arguments, **options).to(DEVICE)


def inputs_on_device(*arguments: Any, **options: Any) -> Inputs:
    """`make_inputs`, where the kernels run."""
    return Inputs(*(tensor.to(DEVICE) for tensor in make_inputs(*arguments, **options)))

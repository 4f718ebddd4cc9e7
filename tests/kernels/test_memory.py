"""Memory of gradients is kept from step to step, and never shows what it held before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expert_layers import assert_same, exact, make_inputs, make_layer, run

from moeba.kernels import memory, release_memory

SIZES = dict(experts=8, hidden=256, width=128)  # 2 MB of gradients of the inner product


def inputs_for(experts: list[int]):
    """Tokens that visit these experts alone."""
    inputs = make_inputs(20, 2, experts=len(experts), hidden=SIZES["hidden"], seed=experts[0])
    return inputs._replace(index=torch.tensor(experts)[inputs.index])


@pytest.fixture
def layer():
    release_memory()
    yield make_layer(**SIZES)
    release_memory()


def test_another_step_in_the_same_memory(layer, only):
    only("cpu")
    places = []
    for experts in ([0, 1, 2], [5, 6], [2, 3, 7]):
        inputs = inputs_for(experts)
        wanted = exact(layer, inputs)
        layer.zero_grad(set_to_none=True)
        assert_same(run(layer, inputs), wanted)
        idle = [expert for expert in range(SIZES["experts"]) if expert not in experts]
        assert not layer.gate_up_proj.grad[idle].any() and not layer.down_proj.grad[idle].any()
        places.append(layer.gate_up_proj.grad.data_ptr())
    assert len(set(places)) == 1


def test_a_gradient_that_was_written_to(layer, only):
    """Clipping, noise or anything else in place: what is not known to be zero is cleared."""
    only("cpu")
    run(layer, inputs_for([0, 1]))
    layer.gate_up_proj.grad.add_(1.0)
    layer.zero_grad(set_to_none=True)
    inputs = inputs_for([4, 5])
    assert_same(run(layer, inputs), exact(layer, inputs))


def test_a_gradient_that_somebody_holds(layer, only):
    only("cpu")
    run(layer, inputs_for([0, 1]))
    held = layer.gate_up_proj.grad
    before = held.clone()
    layer.zero_grad(set_to_none=True)
    run(layer, inputs_for([4, 5]))
    assert torch.equal(held, before) and layer.gate_up_proj.grad.data_ptr() != held.data_ptr()


def test_memory_goes_with_the_parameter_or_when_asked(layer, only):
    only("cpu")
    run(layer, inputs_for([0, 1]))
    assert len(memory._kept) == 2
    release_memory()
    assert not len(memory._kept)
    other = make_layer(**SIZES)
    run(other, inputs_for([0, 1]))
    assert len(memory._kept)
    del other
    assert not len(memory._kept)


def test_a_gradient_that_was_written_to_unseen(layer, only):
    """What goes through `.data` leaves no trace in the version of a tensor."""
    only("cpu")
    run(layer, inputs_for([0, 1]))
    layer.gate_up_proj.grad.data.add_(1.0)
    layer.zero_grad(set_to_none=True)
    inputs = inputs_for([4, 5])
    assert_same(run(layer, inputs), exact(layer, inputs))


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_cut_from_larger_ones_either_way_round(transposed, only):
    """Rows or columns contiguous, and gaps between experts: the gradient is laid out by what is contiguous."""
    only("cpu")
    small = make_layer(transposed=transposed, experts=3, hidden=20, width=12)
    inputs = make_inputs(30, 2, experts=3, hidden=20)
    wanted = exact(small, inputs)
    for name in ("gate_up_proj", "down_proj"):
        whole = getattr(small, name).detach()
        larger = whole.new_zeros(whole.shape[0], whole.shape[2], whole.shape[1] + 3)
        larger[..., :-3] = whole.mT
        setattr(small, name, torch.nn.Parameter(larger[..., :-3].mT))
    assert_same(run(small, inputs), wanted)


def test_float64_keeps_its_digits(only):
    only("composed")
    layer = make_layer(dtype=torch.float64)
    inputs = make_inputs(30, 2, dtype=torch.float64)
    assert_same(run(layer, inputs), exact(layer, inputs), tolerance=1e-13)


def test_scratch_is_given_back_when_asked(only):
    only("cpu")
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc to look into")

    def resident() -> int:
        return next(
            int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS")
        )

    layer, inputs = make_layer(experts=2, hidden=512, width=16), make_inputs(20_000, 2, experts=2, hidden=512)
    with torch.no_grad():
        layer(*inputs[:3])  # an answer for each choice: 82 MB
        held = resident()
        release_memory()
        assert held - resident() > 60_000
        release_memory()
        assert layer(*inputs[:3]).isfinite().all()
    release_memory()

"""Where gradients go: into what is asked for, once, and as PyTorch itself would have put them there."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest
import torch
from expert_layers import assert_same, exact, make_inputs, make_layer, run
from torch.utils.checkpoint import checkpoint

TOLERANCE = 5e-6


def loss_of(layer, inputs):
    return (layer(*inputs[:3]) * inputs.change).sum()


def parameters_of(layer):
    return dict(layer.named_parameters())


def assert_gradients(layer, wanted, times=1):
    found = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert_same(found, {name: wanted[name] * times for name in found}, TOLERANCE)


@pytest.fixture
def layer():
    return make_layer(bias=True)


@pytest.fixture(params=[4, 60])
def inputs(request):
    return make_inputs(request.param, 2)


NAMES = ("hidden", "weights", "gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias")


@pytest.mark.parametrize("alone", NAMES)
def test_one_gradient_alone(alone, layer, inputs, path):
    wanted = exact(layer, inputs)
    layer.requires_grad_(False)
    if alone in NAMES[:2]:
        inputs = inputs._replace(**{alone: getattr(inputs, alone).requires_grad_()})
        asked = getattr(inputs, alone)
    else:
        asked = parameters_of(layer)[alone].requires_grad_()
    loss_of(layer, inputs).backward()
    assert_same({alone: asked.grad}, {alone: wanted[alone]}, TOLERANCE)
    for name, tensor in {**parameters_of(layer), **inputs._asdict()}.items():
        assert name == alone or tensor.grad is None


def test_frozen_experts_pass_gradients_on(layer, inputs, path):
    wanted = exact(layer, inputs)
    layer.requires_grad_(False)
    found = run(layer, inputs)
    for name in ("output", "hidden", "weights"):
        assert_same({name: found[name]}, {name: wanted[name]})
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_nothing_is_recorded_where_nothing_wants_it(layer, inputs, path):
    with torch.no_grad():
        assert not layer(*inputs[:3]).requires_grad
    with torch.inference_mode():
        assert layer(*inputs[:3]).is_inference()
    layer.requires_grad_(False)
    assert not layer(*inputs[:3]).requires_grad


@pytest.mark.parametrize("transposed", [False, True])
def test_backward_adds_to_what_stands_there(transposed, inputs, path):
    layer = make_layer(bias=True, transposed=transposed)
    wanted = exact(layer, inputs)
    other = make_inputs(inputs.hidden.shape[0], 2, seed=5)
    second = exact(layer, other)
    loss_of(layer, inputs).backward()
    held = {name: parameter.grad for name, parameter in layer.named_parameters()}
    before = {name: gradient.clone() for name, gradient in held.items()}
    loss_of(layer, other).backward()
    assert_gradients(layer, {name: wanted[name] + second[name] for name in held})
    for name, parameter in layer.named_parameters():
        # As PyTorch does it: the same tensor, grown.
        assert parameter.grad is held[name] and not torch.equal(held[name], before[name]), name


def test_one_layer_called_twice_in_a_graph(layer, inputs, path):
    wanted = exact(layer, inputs)
    for times in (2, 4):  # without, and with gradients that already stand there
        (loss_of(layer, inputs) + loss_of(layer, inputs)).backward()
        assert_gradients(layer, wanted, times)


def test_a_graph_kept_for_a_second_backward(layer, inputs, path):
    wanted = exact(layer, inputs)
    loss = loss_of(layer, inputs)
    loss.backward(retain_graph=True)
    loss.backward()
    assert_gradients(layer, wanted, 2)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_hooks_see_each_gradient_for_itself(layer, inputs, path):
    wanted, seen = exact(layer, inputs), []
    handle = layer.down_proj.register_hook(lambda gradient: seen.append(gradient.clone()) or 2 * gradient)
    for times in (1, 2):
        loss_of(layer, inputs).backward()
        assert_same({"down_proj": layer.down_proj.grad}, {"down_proj": 2 * times * wanted["down_proj"]})
    assert len(seen) == 2
    assert_same({"seen": seen[1]}, {"seen": wanted["down_proj"]})
    handle.remove()
    loss_of(layer, inputs).backward()
    assert_same({"down_proj": layer.down_proj.grad}, {"down_proj": 5 * wanted["down_proj"]})


def test_hooks_after_accumulation_see_the_sum(layer, inputs, path):
    """What fused optimizers do: step in the hook, and drop the gradient."""
    wanted, seen = exact(layer, inputs), []

    def step(parameter):
        seen.append(parameter.grad.clone())
        if len(seen) == 2:
            parameter.grad = None

    layer.gate_up_proj.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        loss_of(layer, inputs).backward()
    for found, times in zip(seen, (1, 2, 1), strict=True):
        assert_same({"": found}, {"": times * wanted["gate_up_proj"]})


def test_asking_for_gradients_leaves_those_that_stand_there(layer, inputs, path):
    wanted = exact(layer, inputs)
    loss_of(layer, inputs).backward()
    before = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    asked = list(layer.parameters())
    found = torch.autograd.grad(loss_of(layer, inputs), asked)
    assert_same(dict(zip(before, found, strict=True)), {name: wanted[name] for name in before})
    (only_one,) = torch.autograd.grad(loss_of(layer, inputs), [layer.down_proj])
    assert_same({"": only_one}, {"": wanted["down_proj"]})
    loss_of(layer, inputs).backward(inputs=[layer.down_proj_bias])
    for name, parameter in layer.named_parameters():
        if name == "down_proj_bias":
            assert not torch.equal(parameter.grad, before[name])
        else:
            assert torch.equal(parameter.grad, before[name]), name


def test_graphs_of_gradients_add_beside_what_is_held(layer, inputs, path):
    """With `create_graph` PyTorch makes a new sum and leaves the old tensor alone."""
    wanted = exact(layer, inputs)
    loss_of(layer, inputs).backward()
    held = {name: parameter.grad for name, parameter in layer.named_parameters()}
    before = {name: gradient.clone() for name, gradient in held.items()}
    loss_of(layer, inputs).backward(create_graph=True)
    assert_gradients(layer, wanted, 2)
    assert all(torch.equal(held[name], before[name]) for name in held)
    layer.zero_grad(set_to_none=True)  # breaks the cycle between parameters and their graphs


def test_gradients_of_gradients_are_refused(layer, inputs, path):
    inputs = inputs._replace(hidden=inputs.hidden.requires_grad_())
    (gradient,) = torch.autograd.grad(loss_of(layer, inputs), inputs.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradient.square().sum().backward()


def test_a_gradient_penalty_on_the_weights_is_refused(layer, inputs, path):
    """Also where gradients stand there already, to which backward might have added out of sight of autograd."""
    loss_of(layer, inputs).backward()
    loss_of(layer, inputs).backward(create_graph=True)
    penalty = sum(parameter.grad.square().sum() for parameter in layer.parameters())
    with pytest.raises(RuntimeError, match="no second derivatives"):
        penalty.backward()
    layer.zero_grad(set_to_none=True)


def test_gradients_in_another_layout_or_dtype_are_kept(layer, inputs, path):
    wanted = exact(layer, inputs)
    layer.down_proj.grad = torch.ones_like(layer.down_proj).mT.contiguous().mT
    layer.gate_up_proj.grad = torch.ones_like(layer.gate_up_proj)
    loss_of(layer, inputs).backward()
    for name in ("down_proj", "gate_up_proj"):
        assert_same({name: getattr(layer, name).grad}, {name: wanted[name] + 1})


def test_bfloat16_accumulates_as_pytorch_does(inputs, path):
    layer = make_layer(dtype=torch.bfloat16)
    inputs = inputs._replace(
        **{name: getattr(inputs, name).bfloat16() for name in ("hidden", "weights", "change")}
    )
    wanted = exact(layer, inputs)
    for _ in range(3):
        loss_of(layer, inputs).backward()
    found = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert_same(found, {name: 3 * wanted[name] for name in found}, 1.5e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, layer, inputs, path):
    wanted = exact(layer, inputs)
    hidden, weights = inputs.hidden.requires_grad_(), inputs.weights.requires_grad_()
    for times in (1, 2):
        output = checkpoint(layer, hidden, inputs.index, weights, use_reentrant=reentrant)
        (output * inputs.change).sum().backward()
        assert_gradients(layer, wanted, times)
        assert_same({"hidden": hidden.grad}, {"hidden": times * wanted["hidden"]})


def test_weights_changed_between_forward_and_backward_are_noticed(layer, inputs, path):
    loss = loss_of(layer, inputs)
    with torch.no_grad():
        layer.down_proj.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_weights_that_are_computed(layer, inputs, path):
    """A weight with a graph of its own behind it, as adapters make it."""
    wanted = exact(layer, inputs)
    for name in ("gate_up_proj", "down_proj"):
        torch.nn.utils.parametrize.register_parametrization(layer, name, Doubled())
    for times in (1, 2):
        loss_of(layer, inputs).backward()
        for name in ("gate_up_proj", "down_proj"):
            original = layer.parametrizations[name].original
            assert_same({name: original.grad}, {name: times * wanted[name]})


class Doubled(torch.nn.Module):
    def forward(self, original):
        return original

    def right_inverse(self, value):
        return value


def resident(tensor: torch.Tensor) -> float:
    """The fraction of a tensor's memory that has pages behind it."""
    page, start = mmap.PAGESIZE, tensor.data_ptr()
    start -= start % page
    pages = -(-tensor.nbytes // page)
    flags = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(pages * page), flags) == 0
    return sum(flag & 1 for flag in flags) / pages


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel which pages are there")
def test_gradients_of_idle_experts_take_no_memory(path):
    # Above 32 MB glibc asks the system for fresh pages; below, it may hand out and clear what was used before.
    layer = make_layer(experts=96, hidden=256, width=352)
    inputs = make_inputs(8, 1, experts=1, hidden=256)
    busy = inputs._replace(index=torch.full((8, 1), 7))
    # The kernels add in place; PyTorch adds whole tensors, and writes every zero again.
    for _ in range(2 if path.__name__.endswith("cpu") else 1):
        loss_of(layer, busy).backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad.nbytes > 32 << 20
            assert resident(parameter.grad) < 0.2, name
    alone = make_layer(experts=1, hidden=256, width=352)
    for name, parameter in alone.named_parameters():
        parameter.data.copy_(getattr(layer, name)[7:8])
    wanted = exact(alone, inputs)
    for name, parameter in layer.named_parameters():
        assert not parameter.grad[:7].any() and not parameter.grad[8:].any()
        assert_same({name: parameter.grad[7:8]}, {name: path.runs * wanted[name]})

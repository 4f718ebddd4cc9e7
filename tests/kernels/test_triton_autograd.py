"""What Triton's kernels keep for the backward, which gradients they compute, and how they meet autograd."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from expert_layers import assert_same, difference, exact, run
from triton_case import inputs_on_device, layer_on_device, triton_path  # noqa: F401

from moeba.kernels import gpu
from moeba.kernels.layer import layer_of

pytestmark = pytest.mark.usefixtures("triton_path")

SMALL = dict(experts=3, hidden=20, width=12)


def small(tokens=4, **options):
    return layer_on_device(**SMALL, bias=True, **options), inputs_on_device(tokens, 2, experts=3, hidden=20)


def saved_by(layer, inputs):
    """The tensors that a forward in training keeps, apart from its inputs and the layer's own."""
    hidden, weights = inputs.hidden.clone().requires_grad_(), inputs.weights.clone().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        layer(hidden, inputs.index, weights)
    known = {tensor.data_ptr() for tensor in (hidden, weights, inputs.index, *layer.parameters())}
    return [tensor for tensor in kept if tensor.data_ptr() not in known]


def test_only_routing_and_first_product_are_kept(monkeypatch):
    layer, inputs = small(tokens=40)
    routing, product = saved_by(layer, inputs)
    assert product.shape == (80, 24)
    assert routing.dtype == torch.int32 and routing.numel() <= 80 + 2 * (80 // 16 + 3) + 12
    monkeypatch.setattr(gpu.settings, "recompute", True)
    (routing,) = saved_by(layer, inputs)
    assert routing.dtype == torch.int32


def test_recomputed_gradients_are_the_same_bits(monkeypatch):
    layer, inputs = small()
    before = {name: tensor.clone() for name, tensor in run(layer, inputs).items()}
    monkeypatch.setattr(gpu.settings, "recompute", True)
    after = run(layer, inputs)
    assert before and all(torch.equal(before[name], after[name]) for name in before)


def test_twice_the_same_bits():
    layer, inputs = small(tokens=9)
    first = {name: tensor.clone() for name, tensor in run(layer, inputs).items()}
    second = run(layer, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


LEAVES = ("hidden", "weights", "gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")


@pytest.mark.parametrize("wanted", [*itertools.combinations(LEAVES, 1), LEAVES[:2], LEAVES[2:]])
def test_only_what_is_wanted_is_differentiated(wanted, monkeypatch):
    layer, inputs = small()
    leaves = dict(layer.named_parameters()) | {
        "hidden": inputs.hidden.clone(),
        "weights": inputs.weights.clone(),
    }
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in wanted)
    everything = exact(layer.requires_grad_(), inputs)
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in wanted)
    weight_gradients = count_weight_gradients(monkeypatch)
    layer(leaves["hidden"], inputs.index, leaves["weights"]).backward(inputs.change)
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name in wanted), name
        if name in wanted:
            assert difference(leaf.grad, everything[name]) < 5e-6, name
    assert len(weight_gradients) == len({"gate_up_proj", "down_proj"} & set(wanted))


def count_weight_gradients(monkeypatch):
    from moeba.kernels.gpu import backward

    launches, launch = [], backward._weight_gradient
    monkeypatch.setattr(backward, "_weight_gradient", lambda *a, **k: launches.append(1) or launch(*a, **k))
    return launches


def test_a_second_derivative_is_refused():
    layer, inputs = small()
    hidden = inputs.hidden.clone().requires_grad_()
    output = layer(hidden, inputs.index, inputs.weights)
    (gradient,) = torch.autograd.grad(output.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_backward_twice_through_one_graph():
    """Nothing that is kept is written over."""
    layer, inputs = small()
    hidden = inputs.hidden.clone().requires_grad_()
    output = layer(hidden, inputs.index, inputs.weights)
    first, second = (
        torch.autograd.grad(output, hidden, inputs.change, retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_expanded_upstream():
    """The gradient of a sum has no memory of its own for each number."""
    layer, inputs = small()
    layer(*inputs[:3]).sum().backward()
    found = {name: parameter.grad for name, parameter in layer.named_parameters()}
    wanted = exact(layer, inputs._replace(change=torch.ones_like(inputs.change)))
    assert_same(found, {name: wanted[name] for name in found})


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_whole(recompute, monkeypatch):
    """torch.compile takes the layer in one piece, with the same bits, in training and without gradients."""
    monkeypatch.setattr(gpu.settings, "recompute", recompute)
    layer, inputs = small()
    parts = layer_of(layer)

    def answer(hidden, index, weights):
        assert gpu.obstacle(parts, hidden) is None
        return gpu.run(parts, hidden * 1.0, index, weights)

    torch.compiler.reset()
    compiled = torch.compile(answer, backend="aot_eager", fullgraph=True)
    found = []
    for function in (answer, compiled):
        hidden, weights = inputs.hidden.clone().requires_grad_(), inputs.weights.clone().requires_grad_()
        output = function(hidden, inputs.index, weights)
        leaves = [hidden, weights, *layer.parameters()]
        with torch.no_grad():
            alone = function(hidden[:1], inputs.index[:1], weights[:1])
        found.append([output, alone, *torch.autograd.grad(output, leaves, inputs.change)])
    assert all(torch.equal(eager, other) for eager, other in zip(*found, strict=True))
    layer(*inputs[:3])  # what the spy watches


def test_obstacles():
    layer, inputs = small()
    assert gpu.obstacle(layer_of(layer), inputs.hidden) is None
    assert "gate" in gpu.obstacle(layer_of(layer_on_device("tanh")), inputs.hidden)
    assert "float32" in gpu.obstacle(layer_of(layer), inputs.hidden.double())
    layer(*inputs[:3])


def test_no_device_is_an_obstacle(monkeypatch):
    layer, inputs = small()
    layer(*inputs[:3])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "CUDA" in gpu.obstacle(layer_of(layer.cpu()), inputs.hidden.cpu())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu, "WHY_NOT", gpu.availability._why_not())
    assert gpu.obstacle(layer_of(layer), inputs.hidden) == "Triton is not installed"


def test_an_old_triton_is_an_obstacle(monkeypatch):
    layer, inputs = small()
    layer(*inputs[:3])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.4.0")
    assert "3.4.0 is older" in gpu.availability._why_not()

"""Triton's kernels: outputs and gradients for every gate, layout, dtype and shape, against float64."""

from __future__ import annotations

import pytest
import torch
from expert_layers import assert_same, difference, exact, run
from triton_case import DEVICE, inputs_on_device, layer_on_device, triton_path  # noqa: F401

pytestmark = pytest.mark.usefixtures("triton_path")

# Triton's interpreter cuts bfloat16 off instead of rounding it.
SIXTEEN_BITS = {torch.bfloat16: 2.5e-2 if DEVICE == "cpu" else 1.2e-2, torch.float16: 1.5e-3}
SMALL = dict(experts=3, hidden=20, width=12)
LAYOUTS = {
    "biased": dict(bias=True),
    "ungated_biased": dict(gated=False, bias=True),
    "transposed": dict(transposed=True),
    "transposed_ungated": dict(transposed=True, gated=False),
    "interleaved": dict(interleaved=True),
    "interleaved_transposed_biased": dict(interleaved=True, transposed=True, bias=True),
}


def inputs_of(tokens, top_k, experts=3, hidden=20, **options):
    return inputs_on_device(tokens, top_k, experts=experts, hidden=hidden, **options)


def check(layer, inputs, tolerance=5e-6):
    """In training, and where no gradient is wanted, and token by token, which needs no plan."""
    wanted = exact(layer, inputs)
    assert_same(run(layer, inputs), wanted, tolerance)
    with torch.no_grad():
        assert difference(layer(*inputs[:3]), wanted["output"]) <= tolerance
        first = layer(*(tensor[:1] for tensor in inputs[:3]))
        assert difference(first, wanted["output"][:1]) <= tolerance


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu", "relu2", "clamped", "limited_silu"])
def test_gates(kind):
    check(layer_on_device(kind, **SMALL), inputs_of(4, 2))


@pytest.mark.parametrize("kind", ["gelu", "relu2"])
def test_activations_without_a_gate(kind):
    check(layer_on_device(kind, gated=False, **SMALL), inputs_of(4, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    kind = "silu" if "ungated" in layout else "clamped"
    check(layer_on_device(kind, **SMALL, **LAYOUTS[layout]), inputs_of(4, 2))


@pytest.mark.parametrize("layout", ["biased", "interleaved_transposed_biased"])
def test_several_tiles_each_way(layout):
    """More rows than a tile has, more columns and more depth than a block."""
    layer = layer_on_device("limited_silu", experts=2, hidden=40, width=37, **LAYOUTS[layout])
    inputs = inputs_of(17, 2, experts=2, hidden=40)
    check(layer, inputs)


@pytest.mark.parametrize("tokens, top_k, experts", [(1, 1, 1), (17, 1, 1), (3, 3, 3), (5, 2, 7), (1, 2, 33)])
def test_numbers_of_tokens_and_experts(tokens, top_k, experts):
    layer = layer_on_device(experts=experts, hidden=8, width=4)
    check(layer, inputs_of(tokens, top_k, experts=experts, hidden=8))


def test_all_tokens_on_one_expert():
    layer, inputs = layer_on_device(**SMALL, bias=True), inputs_of(18, 1)
    inputs = inputs._replace(index=torch.full_like(inputs.index, 1))
    check(layer, inputs)
    for parameter in layer.parameters():
        assert parameter.grad[1].all() and not parameter.grad[[0, 2]].any()


def test_an_expert_chosen_twice_by_a_token_counts_twice():
    inputs = inputs_of(3, 2)
    check(layer_on_device(**SMALL), inputs._replace(index=inputs.index[:, :1].repeat(1, 2)))


def test_no_token():
    layer, inputs = layer_on_device(**SMALL, bias=True), inputs_of(0, 2)
    assert_same(run(layer, inputs), exact(layer, inputs))
    with torch.no_grad():
        assert layer(*inputs[:3]).shape == (0, 20)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["interleaved_transposed_biased", "transposed"])
def test_sixteen_bits(layout, dtype):
    layer = layer_on_device(**SMALL, **LAYOUTS[layout], dtype=dtype)
    inputs = inputs_of(5, 2, dtype=dtype)
    found = run(layer, inputs)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert_same(found, exact(layer, inputs), tolerance=SIXTEEN_BITS[dtype])


def test_hidden_wider_than_weights():
    """As under autocast: products in the weights' type, answer in hidden's."""
    layer = layer_on_device(**SMALL, bias=True, dtype=torch.bfloat16)
    inputs = inputs_of(5, 2)
    found = run(layer, inputs)
    assert found["hidden"].dtype == found["weights"].dtype == torch.float32
    assert_same(found, exact(layer, inputs), tolerance=SIXTEEN_BITS[torch.bfloat16])


def test_sentinels_contribute_nothing_even_if_their_memory_is_poisoned(monkeypatch):
    layer, inputs = layer_on_device(**SMALL, bias=True), inputs_of(6, 2)
    index = inputs.index.clone()
    index[0, 1], index[2], index[5, 0] = 3, 3, 200
    inputs = inputs._replace(index=index)
    wanted = exact(layer, inputs)
    poison_empty(monkeypatch)
    found = run(layer, inputs)
    assert_same(found, wanted)
    assert (
        not found["weights"][index >= 3].any()
        and not found["hidden"][2].any()
        and not found["output"][2].any()
    )


def test_nothing_is_read_that_was_not_written(monkeypatch):
    layer, inputs = layer_on_device("clamped", **SMALL, bias=True, interleaved=True), inputs_of(19, 1)
    wanted = exact(layer, inputs)
    poison_empty(monkeypatch)
    assert_same(run(layer, inputs), wanted)


def test_an_index_beyond_the_sentinel_is_one_for_a_single_token():
    layer, inputs = layer_on_device(**SMALL), inputs_of(1, 2)
    check(layer, inputs._replace(index=torch.tensor([[3, 1]], device=DEVICE)))


def test_strided_tensors():
    """Hidden, weights of the routing and parameters whose memory is not in the order of their dimensions."""
    layer, inputs = layer_on_device(**SMALL), inputs_of(5, 2)
    layer.gate_up_proj.data = layer.gate_up_proj.data.mT.contiguous().mT
    layer.down_proj.data = torch.stack((layer.down_proj.data, layer.down_proj.data), -1)[..., 0]
    inputs = inputs._replace(
        hidden=inputs.hidden.T.contiguous().T,
        index=inputs.index.T.contiguous().T,
        weights=inputs.weights.T.contiguous().T,
        change=inputs.change.T.contiguous().T,
    )
    assert_same(run(layer, inputs), exact(layer, inputs))


def poison_empty(monkeypatch):
    """Memory that was asked for without zeros comes with NaN, or with an impossible number."""

    def poisoned(empty):
        def ask(*arguments, **options):
            tensor = empty(*arguments, **options)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else -(2**30))

        return ask

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))

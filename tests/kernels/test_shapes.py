"""Outputs and gradients on shapes that fill no tile, and with every layout that a layer may have."""

from __future__ import annotations

import itertools

import pytest
import torch
from expert_layers import assert_same, difference, exact, make_inputs, make_layer, run

ODD = (1, 17, 33, 65)
LAYOUTS = {
    "plain": {},
    "ungated": dict(gated=False),
    "biased": dict(bias=True),
    "ungated_biased": dict(gated=False, bias=True),
    "transposed": dict(transposed=True),
    "transposed_ungated_biased": dict(transposed=True, gated=False, bias=True),
    "interleaved": dict(interleaved=True),
    "interleaved_transposed_biased": dict(interleaved=True, transposed=True, bias=True),
}
GATES = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "clamped", "limited_silu")


def check(layer, inputs, tolerance=5e-6):
    """In training, and where no gradient is wanted: kernels may take another road there."""
    wanted = exact(layer, inputs)
    assert_same(run(layer, inputs), wanted, tolerance)
    with torch.no_grad():
        answer = layer(*inputs[:3])
    assert difference(answer, wanted["output"]) <= tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", GATES)
def test_gates_and_layouts(kind, layout, path):
    options = LAYOUTS[layout]
    if kind in ("clamped", "limited_silu") and not options.get("gated", True):
        options = options | {"gated": True}
    layer = make_layer(kind, **options)
    check(layer, make_inputs(3, 2))
    check(layer, make_inputs(40, 3))


@pytest.mark.parametrize("hidden, width", list(itertools.product(ODD, ODD)))
def test_widths_that_fill_no_vector(hidden, width, path):
    for transposed in (False, True):
        layer = make_layer(hidden=hidden, width=width, transposed=transposed, bias=True, seed=hidden)
        for tokens in (2, 37):
            check(layer, make_inputs(tokens, 2, hidden=hidden))


@pytest.mark.parametrize("hidden, width", [(300, 20), (20, 300), (257, 128), (512, 31)])
def test_widths_beyond_a_block(hidden, width, path):
    for transposed in (False, True):
        layer = make_layer(
            "clamped", hidden=hidden, width=width, transposed=transposed, interleaved=True, bias=True
        )
        for tokens in (4, 70):
            check(layer, make_inputs(tokens, 2, hidden=hidden))


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 47, 48, 49, 96, 143, 144, 145, 200])
def test_rows_of_one_expert(tokens, path):
    """One expert, so that tokens are the rows of its products: around each switch and edge of a panel."""
    for transposed in (False, True):
        check(
            make_layer(experts=1, transposed=transposed, bias=True),
            make_inputs(tokens, 1, experts=1, seed=tokens),
        )


@pytest.mark.parametrize("experts, top_k", [(1, 1), (3, 1), (3, 3), (7, 2), (12, 5), (60, 4), (130, 8)])
def test_numbers_of_experts(experts, top_k, path):
    layer = make_layer("gelu", experts=experts, hidden=20, width=12)
    for tokens in (1, 9, 50):
        check(layer, make_inputs(tokens, top_k, experts=experts, hidden=20))


@pytest.mark.parametrize("tokens", [5, 150])
def test_all_tokens_on_one_expert(tokens, path):
    layer, inputs = make_layer(bias=True), make_inputs(tokens, 1)
    inputs = inputs._replace(index=torch.full((tokens, 1), 3))
    check(layer, inputs)
    found = run(layer, inputs)
    for name, parameter in layer.named_parameters():
        idle = [expert for expert in range(5) if expert != 3]
        assert not found[name][idle].any() and found[name][3].all(), name
        assert parameter.grad.shape == parameter.shape


@pytest.mark.parametrize("tokens", [4, 200])
def test_shares_that_differ_widely(tokens, path):
    """Most tokens on one expert, a few on others, one expert with none."""
    layer, inputs = make_layer(), make_inputs(tokens, 2)
    index = inputs.index.clone()
    index[: tokens - 2] = torch.tensor([0, 4])
    check(layer, inputs._replace(index=index.where(index != 2, torch.tensor(1))))


def test_an_expert_chosen_twice_by_a_token_counts_twice(path):
    inputs = make_inputs(6, 3)
    index = inputs.index.clone()
    index[:, 2] = index[:, 0]
    check(make_layer(bias=True), inputs._replace(index=index))


@pytest.mark.parametrize("layout", ["plain", "interleaved_transposed_biased", "ungated_biased"])
def test_bfloat16_rounds_once(layout, path):
    """From the same 16-bit numbers to the float64 answer: about the rounding of the result itself."""
    layer = make_layer("silu", **LAYOUTS[layout]).bfloat16()
    for tokens in (3, 60):
        inputs = make_inputs(tokens, 2, dtype=torch.bfloat16)
        wanted, found = exact(layer, inputs), run(layer, inputs)
        assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
        assert_same(found, wanted, tolerance=1.6e-2)
        with torch.no_grad():
            # Sums are kept in float32: an output rounded once is within 2^-9 of its own size.
            answer = layer(*inputs[:3])
            assert difference(answer, wanted["output"]) <= (4e-3 if path.__name__.endswith("cpu") else 1.6e-2)


@pytest.mark.parametrize("tokens", [0, 1])
def test_hardly_any_token(tokens, path):
    layer, inputs = make_layer(bias=True), make_inputs(tokens, 2)
    check(layer, inputs)
    assert all(tensor is not None for tensor in run(layer, inputs).values())

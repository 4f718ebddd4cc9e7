"""What callers hand over: views, other dtypes, sentinels, bad numbers."""

from __future__ import annotations

import pytest
import torch
from expert_layers import assert_same, difference, exact, make_inputs, make_layer, run
from torch import nn

NAN, INF = float("nan"), float("inf")


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers with gaps between them."""
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), 7, dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


def turned(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, stored column by column."""
    return tensor.mT.contiguous().mT


@pytest.mark.parametrize("view", [strided, turned])
@pytest.mark.parametrize("tokens", [4, 60])
def test_views(view, tokens, path):
    layer, inputs = make_layer(bias=True), make_inputs(tokens, 3)
    wanted = exact(layer, inputs)
    for name in inputs._fields:
        seen = inputs._replace(**{name: view(getattr(inputs, name))})
        assert_same(run(layer, seen), wanted)
    assert_same(run(layer, type(inputs)(*map(view, inputs))), wanted)


def test_one_row_for_all_tokens(path):
    """Expanded memory: every token is the same numbers, and autograd sums over them."""
    layer, inputs = make_layer(), make_inputs(6, 2)
    row, change = inputs.hidden[:1], inputs.change[:1]
    expanded = inputs._replace(hidden=row.expand(6, -1), change=change.expand(6, -1))
    plain = inputs._replace(hidden=row.repeat(6, 1), change=change.repeat(6, 1))
    assert_same(run(layer, expanded), exact(layer, plain))


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_weights_stored_column_by_column(name, path):
    layer, inputs = make_layer(), make_inputs(40, 2)
    wanted = exact(layer, inputs)
    setattr(layer, name, nn.Parameter(turned(getattr(layer, name).detach())))
    assert not getattr(layer, name).is_contiguous()
    for _ in range(2):
        found = run(layer, inputs)
        assert_same({key: found[key] for key in wanted}, wanted)


def test_weights_that_are_part_of_a_larger_tensor(path):
    """Rows of experts with a gap after each, as slices of one buffer have."""
    layer, inputs = make_layer(), make_inputs(40, 2)
    wanted = exact(layer, inputs)
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(layer, name).detach()
        buffer = torch.full((7, weight.shape[1] + 3, weight.shape[2] + 5), NAN)
        part = buffer[1:6, 2:-1, 1:-4]
        part.copy_(weight)
        setattr(layer, name, nn.Parameter(part))
    found = run(layer, inputs)
    assert_same({key: found[key] for key in wanted}, wanted)


def test_weights_with_gaps_between_numbers_take_another_path(only):
    layer, inputs = make_layer(), make_inputs(9, 2)
    wanted = exact(layer, inputs)
    layer.down_proj = nn.Parameter(strided(layer.down_proj.detach()))
    kernels, composed = only("cpu", "composed")
    found = run(layer, inputs)
    assert_same({key: found[key] for key in wanted}, wanted)
    assert (kernels.runs, composed.runs) == (0, 1) and "gaps" in kernels.reasons[0]


@pytest.mark.parametrize("tokens", [3, 60])
def test_int32_index(tokens, path):
    layer, inputs = make_layer(), make_inputs(tokens, 2)
    assert_same(run(layer, inputs._replace(index=inputs.index.int())), exact(layer, inputs))


# (hidden, weights of the experts, routing weights) and how far from float64 the answer may be.
DTYPES = [
    (torch.float32, torch.bfloat16, torch.float32, 1.6e-2),
    (torch.bfloat16, torch.float32, torch.bfloat16, 1.6e-2),
    (torch.bfloat16, torch.bfloat16, torch.float32, 1.6e-2),
    (torch.float16, torch.float32, torch.float16, 2e-3),
    (torch.float32, torch.float32, torch.bfloat16, 4e-3),
    (torch.float32, torch.float32, torch.float64, 5e-6),
]


@pytest.mark.parametrize("hidden, weight, routing, tolerance", DTYPES)
def test_mixed_dtypes(hidden, weight, routing, tolerance, path):
    layer = make_layer(bias=True).to(weight)
    for tokens in (3, 60):
        inputs = make_inputs(tokens, 2)
        inputs = inputs._replace(
            hidden=inputs.hidden.to(hidden),
            weights=inputs.weights.to(routing),
            change=inputs.change.to(hidden),
        )
        found = run(layer, inputs)
        assert_same(found, exact(layer, inputs), tolerance)
        assert found["hidden"].dtype == hidden and found["weights"].dtype == routing
        assert found["down_proj"].dtype == weight


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [torch.float32, torch.bfloat16])
def test_autocast(hidden, weight, path):
    layer = make_layer(bias=True).to(weight)
    inputs = make_inputs(60, 2, dtype=hidden)
    wanted = exact(layer, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(layer, inputs)
    assert_same(found, wanted, 1.6e-2)
    assert found["output"].dtype == hidden


@pytest.mark.parametrize("tokens", [4, 80])
def test_sentinels_answer_nothing(tokens, path):
    """An index of `num_experts` is a choice that lives on another device."""
    layer, inputs = make_layer(bias=True), make_inputs(tokens, 3)
    index = inputs.index.clone()
    index[::2, 1] = layer.num_experts
    index[1] = layer.num_experts
    inputs = inputs._replace(index=index)
    found = run(layer, inputs)
    assert_same(found, exact(layer, inputs))
    assert not found["weights"][index == layer.num_experts].any()
    assert not found["hidden"][1].any() and not found["output"][1].any()
    with torch.no_grad():
        assert difference(layer(*inputs[:3]), found["output"]) <= 5e-6


def test_nothing_but_sentinels(path):
    layer, inputs = make_layer(bias=True), make_inputs(4, 2)
    inputs = inputs._replace(index=torch.full((4, 2), layer.num_experts))
    assert not any(tensor.any() for tensor in run(layer, inputs).values())
    with torch.no_grad():
        assert not layer(*inputs[:3]).any()


@pytest.mark.parametrize("grad", [False, True])
def test_a_negative_index_is_refused(grad, path):
    layer, inputs = make_layer(), make_inputs(4, 2)
    inputs.index[2, 1] = -1
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="negative expert index"):
        layer(*inputs[:3])


@pytest.mark.parametrize("kind", ["silu", "gelu", "relu", "clamped", "limited_silu"])
@pytest.mark.parametrize("tokens", [5, 60])
def test_a_bad_token_stays_alone(kind, tokens, path):
    layer, inputs = make_layer(kind, bias=True), make_inputs(tokens, 2)
    bad = inputs.hidden.clone()
    bad[1, 3], bad[3, 0] = NAN, INF
    with torch.no_grad():
        good, found = layer(*inputs[:3]), layer(bad, *inputs[1:3])
    assert found[1].isnan().all()
    assert not found[3].isfinite().all()
    others = [0, 2, *range(4, tokens)]
    assert difference(found[others], good[others]) <= 5e-6


def test_a_bad_expert_is_only_heard_where_it_was_chosen(path):
    layer, inputs = make_layer(), make_inputs(30, 2)
    with torch.no_grad():
        layer.gate_up_proj[2] = NAN
        found = layer(*inputs[:3])
    chosen = (inputs.index == 2).any(1)
    assert chosen.any() and not chosen.all()
    assert found[chosen].isnan().all() and found[~chosen].isfinite().all()


def test_large_numbers_do_not_overflow_in_the_gates(path):
    """Inner products of some thousands, of both signs: exponentials must not make infinities of them."""
    for kind in ("silu", "gelu", "gelu_tanh", "clamped", "limited_silu"):
        layer, inputs = make_layer(kind), make_inputs(20, 2)
        inputs = inputs._replace(hidden=inputs.hidden * 3000)
        # Near zero an inner product is off by the rounding of thousands, and slopes with it.
        assert_same(run(layer, inputs), exact(layer, inputs), 3e-3)


@pytest.mark.parametrize(
    "layout", [dict(), dict(interleaved=True, transposed=True, bias=True, kind="clamped")]
)
def test_busy_and_quiet_experts_in_one_call(layout, path):
    """Those of many tokens and those of few are computed in different ways, side by side."""
    layer, inputs = make_layer(experts=6, **layout), make_inputs(80, 2, experts=6)
    token = torch.arange(80)
    index = torch.stack((torch.zeros_like(token), torch.where(token < 14, token % 5 + 1, 1)), dim=1)
    found = run(layer, inputs._replace(index=index))
    assert_same(found, exact(layer, inputs._replace(index=index)))
    assert torch.bincount(index.flatten()).tolist() == [80, 69, 3, 3, 3, 2]


@pytest.mark.parametrize(
    "layout", [dict(), dict(interleaved=True, transposed=True, bias=True, kind="clamped")]
)
def test_more_tokens_than_a_backward_holds_at_once(layout, only, threads):
    """The experts' gradients are made a few experts at a time; one expert alone is more than its share."""
    only("cpu")
    threads(1)  # shares grow with the threads: 576 rows of these 2,000
    layer, inputs = make_layer(experts=6, **layout), make_inputs(1000, 2, experts=6)
    index = inputs.index.clone()
    index[:700, 0] = torch.where(index[:700, 1] == 2, 3, 2)
    assert_same(run(layer, inputs._replace(index=index)), exact(layer, inputs._replace(index=index)))

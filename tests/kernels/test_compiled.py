"""Under torch.compile: one graph, the kernels as operators in it, the same numbers."""

from __future__ import annotations

import pytest
import torch
from expert_layers import assert_same, difference, exact, make_inputs, make_layer, run
from support import random_ids, tiny_model
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from moeba.kernels import NAME, cpu

LAYERS = {
    "plain": {},
    "ungated": dict(gated=False, kind="relu2"),
    "interleaved_transposed_biased": dict(kind="clamped", interleaved=True, transposed=True, bias=True),
}


@pytest.fixture(autouse=True)
def kernels():
    if isinstance(why := cpu.build.library(), str):
        pytest.skip(why)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Watched:
    """The eager AOT backend, that keeps the names of the operators it was given."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def keep(self, graph: torch.fx.GraphModule, _):
        self.names += [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        return make_boxed_func(graph.forward)

    def __call__(self, graph, inputs):
        return aot_autograd(fw_compiler=self.keep, bw_compiler=self.keep)(graph, inputs)


BACKENDS = [Watched, pytest.param(lambda: "inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_one_graph_forward_and_backward(name, backend):
    layer, inputs = make_layer(**LAYERS[name]), make_inputs(30, 2)
    wanted, watched = exact(layer, inputs), backend()
    layer.compile(fullgraph=True, backend=watched)
    assert_same(run(layer, inputs), wanted)
    with torch.no_grad():
        assert difference(layer(*inputs[:3]), wanted["output"]) < 5e-6
    if isinstance(watched, Watched):
        assert {"moeba.experts_in_training.default", "moeba.experts_backward.default"} <= set(watched.names)
        assert not any("mm" in name for name in watched.names)


def test_the_first_call_may_be_compiled():
    """No call before it, from which the gate could be known."""
    layer, inputs = make_layer("clamped"), make_inputs(5, 2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        found = compiled(*inputs[:3])
    assert difference(found, exact(layer, inputs)["output"]) < 5e-6


def test_two_layers_of_different_gates_in_one_graph():
    first, second, inputs = make_layer("silu"), make_layer("relu2"), make_inputs(9, 2)

    def both(x):
        return second(first(x, *inputs[1:3]) / 10, *inputs[1:3])

    with torch.no_grad():
        wanted = both(inputs.hidden)
        found = torch.compile(both, fullgraph=True, backend="aot_eager")(inputs.hidden)
    assert difference(found, wanted) < 5e-6


def test_any_number_of_tokens():
    layer = make_layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (5, 8, 13, 40):
        inputs = make_inputs(tokens, 2)
        with torch.no_grad():
            assert difference(compiled(*inputs[:3]), exact(layer, inputs)["output"]) < 5e-6


def test_an_activation_that_changes_is_compiled_again():
    layer, inputs = make_layer(hidden=32, width=16), make_inputs(9, 2, hidden=32)
    layer.act_fn = torch.nn.SiLU()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for act in (torch.nn.SiLU(), torch.nn.GELU(), torch.nn.Tanhshrink()):
        layer.act_fn = act
        with torch.no_grad():
            assert difference(compiled(*inputs[:3]), exact(layer, inputs)["output"]) < 5e-6


def test_frozen_experts_and_a_trained_router():
    layer, inputs = make_layer(), make_inputs(20, 2)
    wanted = exact(layer, inputs)
    layer.requires_grad_(False)
    layer.compile(fullgraph=True, backend="aot_eager")
    found = run(layer, inputs)
    for name in ("output", "hidden", "weights"):
        assert_same({name: found[name]}, {name: wanted[name]})


def test_sentinels():
    layer, inputs = make_layer(bias=True), make_inputs(20, 2)
    inputs.index[::3, 0] = layer.num_experts
    wanted = exact(layer, inputs)
    layer.compile(fullgraph=True, backend="aot_eager")
    assert_same(run(layer, inputs), wanted)


@pytest.mark.parametrize("hidden", [torch.float32, torch.bfloat16])
def test_sixteen_bits(hidden):
    layer, inputs = make_layer(bias=True).bfloat16(), make_inputs(20, 2, dtype=hidden)
    eager = {name: tensor.clone() for name, tensor in run(layer, inputs).items()}
    layer.compile(fullgraph=True, backend="aot_eager")
    assert_same(run(layer, inputs), eager, 0.0)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_whole_model(backend):
    model, ids = tiny_model("moe"), random_ids()
    model.set_experts_implementation(NAME)
    with torch.no_grad():
        wanted = model(ids, use_cache=False).logits
        found = torch.compile(model, fullgraph=True, backend=backend)(ids, use_cache=False).logits
    assert difference(found, wanted) < 5e-6


def test_the_operators_are_well_formed():
    layer, inputs = make_layer(bias=True), make_inputs(6, 2)
    tensors = (
        *inputs[:3],
        layer.gate_up_proj,
        layer.down_proj,
        layer.gate_up_proj_bias,
        layer.down_proj_bias,
    )
    tensors = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in tensors)
    spec = (0, True, False, 1.0, float("inf"), False)
    torch.library.opcheck(torch.ops.moeba.experts_in_training.default, (*tensors, *spec))
    answering = tuple(tensor.detach() for tensor in tensors)
    torch.library.opcheck(torch.ops.moeba.experts.default, (*answering, *spec))


def test_a_gate_that_is_unknown_compiles_through_transformers():
    layer, inputs = make_layer("tanh", hidden=32, width=16), make_inputs(8, 2, hidden=32)
    wanted = exact(layer, inputs)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert difference(compiled(*inputs[:3]), wanted["output"]) < 5e-6

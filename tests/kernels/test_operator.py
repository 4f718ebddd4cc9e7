"""`moeba::experts` in C++ and in Python: the same call, the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from expert_layers import make_inputs, make_layer

from moeba.kernels import cpu
from moeba.kernels.cpu import operators
from moeba.kernels.cpu.calls import Spec
from moeba.kernels.layer import layer_of

LAYOUTS = {
    "gated": dict(),
    "biased": dict(bias=True),
    "ungated": dict(gated=False),
    "interleaved_transposed_biased": dict(kind="clamped", interleaved=True, transposed=True, bias=True),
}


@pytest.fixture(autouse=True)
def compiled(only):
    only("cpu")


def arguments(layer, hidden, index, weights):
    known = layer_of(layer)
    tensors = (hidden, index, weights, known.inner, known.down, known.inner_bias, known.down_bias)
    return *(None if tensor is None else tensor.detach() for tensor in tensors), *Spec.of(known)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 5, 90])
def test_both_give_the_same_bits(layout, dtype, tokens):
    layer = make_layer(dtype=dtype, **LAYOUTS[layout])
    assert cpu.obstacle(layer_of(layer), torch.empty(0)) is None
    inputs = make_inputs(tokens, 2)
    for hidden in (
        inputs.hidden,
        inputs.hidden.to(dtype),
        inputs.hidden.half(),
        inputs.hidden.mT.contiguous().mT,
    ):
        given = arguments(layer, hidden, inputs.index.int(), inputs.weights.to(dtype))
        found, wanted = torch.ops.moeba.experts.default(*given), operators._answer(*given)
        assert found.dtype == wanted.dtype == hidden.dtype and found.shape == hidden.shape
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("experts", [1, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(transposed, experts, threads):
    """Few tokens on wide experts: how rows are shared out depends on the threads, what is summed does not."""
    layer = make_layer(transposed=transposed, experts=experts, hidden=150, width=333, bias=True)
    inputs = make_inputs(9, 1, experts=experts, hidden=150)
    found = []
    for number in (1, 2, 3, 5, 16):
        threads(number)
        with torch.no_grad():
            found.append(layer(*inputs[:3]))
    assert all(torch.equal(one, found[0]) for one in found[1:])


def test_a_library_without_the_operator():
    """Compiled without PyTorch's headers: Python answers, in a process of its own, for it stays for good."""
    code = (
        "import types, torch\n"
        "from expert_layers import make_inputs, make_layer\n"
        "from moeba.kernels import cpu, register_experts\n"
        "from moeba.kernels.cpu import operators\n"
        "register_experts()\n"
        "calls = []\n"
        "plain = operators.forward\n"
        "operators.forward = lambda *given, **more: calls.append(1) or plain(*given, **more)\n"
        "operators.implement_operator(types.SimpleNamespace())\n"
        "layer, inputs = make_layer(bias=True), make_inputs(5, 2)\n"
        "with torch.no_grad():\n"
        "    found = layer(*inputs[:3])\n"
        "assert calls == [1], calls\n"
        "print(found.double().sum().item())\n"
    )
    tests = Path(__file__).parent
    folders = f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parents[1])!r}]\n"
    done = subprocess.run([sys.executable, "-c", folders + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        found = make_layer(bias=True)(*make_inputs(5, 2)[:3])
    assert float(done.stdout) == found.double().sum().item()

"""Which formula a module's gate is, found by asking it."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from expert_layers import ALPHA, LIMIT, assert_same, exact, make_inputs, make_layer, run
from torch import nn
from transformers.activations import ACT2FN

from moeba.kernels import gates
from moeba.kernels.gates import ACTIVATIONS, Gate, gate_of

KNOWN = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", KNOWN)
def test_activations_of_transformers(name, gated):
    layer = make_layer(gated=gated)
    layer.act_fn = ACT2FN[name]
    assert gate_of(layer) == Gate(KNOWN[name], gated=gated)


@pytest.mark.parametrize(
    "name", ["quick_gelu", "mish", "sigmoid", "tanh", "relu6", "leaky_relu", "gelu_10", "laplace"]
)
def test_other_activations_are_not_taken_for_known_ones(name):
    for gated in (True, False):
        layer = make_layer(gated=gated)
        layer.act_fn = ACT2FN[name]
        assert gate_of(layer) is None


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("kind", ["silu", "relu2", "clamped", "limited_silu"])
def test_gates_with_numbers_and_layouts(kind, interleaved):
    gate = gate_of(make_layer(kind, interleaved=interleaved))
    assert (gate.kind, gate.interleaved) == (kind, interleaved)
    if kind in ("clamped", "limited_silu"):
        assert gate.limit == LIMIT
    if kind == "clamped":
        assert gate.alpha == ALPHA


@pytest.mark.parametrize("kind", ["clamped", "limited_silu"])
def test_gates_without_a_limit(kind, monkeypatch):
    monkeypatch.setattr("expert_layers.LIMIT", float("inf"))
    layer = make_layer(kind)
    layer.limit = float("inf")
    gate = gate_of(layer)
    # Without a limit the second is the plain activation.
    assert gate == (Gate("clamped", alpha=ALPHA) if kind == "clamped" else Gate("silu"))


def halves(inner):
    return inner.chunk(2, -1)


def clamped(inner, alpha=ALPHA, limit=LIMIT, offset=1.0, low=None):
    gate, up = halves(inner)
    gate, up = gate.clamp(min=low, max=limit), up.clamp(-limit, limit)
    return (up + offset) * gate * torch.sigmoid(alpha * gate)


def limited(inner, limit=LIMIT, low=-LIMIT):
    gate, up = halves(inner)
    return F.silu(gate.clamp(max=limit)) * up.clamp(low, limit)


ALMOST = {
    "halves swapped": lambda x: F.silu(halves(x)[1]) * halves(x)[0],
    "up plus two": lambda x: F.silu(halves(x)[0]) * (halves(x)[1] + 2),
    "another alpha": lambda x: clamped(x, alpha=ALPHA + 1e-3),
    "another limit": lambda x: clamped(x, limit=LIMIT + 1e-3),
    "without the one": lambda x: clamped(x, offset=0.0),
    "gate cut below as well": lambda x: clamped(x, low=-LIMIT),
    "silu with another limit": lambda x: limited(x, limit=LIMIT - 1e-3),
    "up cut above only": lambda x: limited(x, low=None),
    "silu cut far out": lambda x: F.silu(halves(x)[0].clamp(max=1000.0)) * halves(x)[1],
    "cut after the activation": lambda x: (
        F.silu(halves(x)[0]).clamp(max=LIMIT) * halves(x)[1].clamp(-LIMIT, LIMIT)
    ),
    "scaled": lambda x: F.silu(halves(x)[0]) * halves(x)[1] * 1.0001,
    "a norm over the columns": lambda x: F.normalize(F.silu(halves(x)[0]) * halves(x)[1], dim=-1),
    "columns turned": lambda x: (F.silu(halves(x)[0]) * halves(x)[1]).flip(-1),
    "gelu near gelu_tanh": lambda x: (
        (F.gelu(halves(x)[0]) + F.gelu(halves(x)[0], approximate="tanh")) / 2 * halves(x)[1]
    ),
    "rounded": lambda x: (F.silu(halves(x)[0]) * halves(x)[1]).bfloat16().to(x.dtype),
    "noise": lambda x: F.silu(halves(x)[0]) * halves(x)[1] + 1e-3 * torch.randn(x[..., ::2].shape),
    "another shape": lambda x: F.silu(halves(x)[0]).sum(-1, keepdim=True),
}


@pytest.mark.parametrize("name", ALMOST)
def test_gates_that_are_nearly_known(name, only, monkeypatch):
    layer = make_layer()
    layer._apply_gate = ALMOST[name]
    assert gate_of(layer) is None
    if name in ("noise", "another shape"):
        return
    # So PyTorch computes them, right.
    kernels, composed = only("cpu", "composed")
    inputs = make_inputs(30, 2)
    assert_same(run(layer, inputs), exact(layer, inputs), 1e-2 if name == "rounded" else 5e-6)
    assert (kernels.runs, composed.runs) == (0, 1) and "none that the kernels know" in kernels.reasons[0]


def test_a_gate_that_takes_no_probe_is_unknown():
    layer = make_layer()

    def picky(inner):
        raise ValueError("only 34 columns")

    layer._apply_gate = picky
    assert gate_of(layer) is None


def test_a_module_whose_activation_changes_is_asked_again(path):
    layer, inputs = make_layer(), make_inputs(20, 2)
    for act in (F.relu, nn.SiLU(), nn.GELU(), nn.ReLU(), nn.GELU(approximate="tanh")):
        layer.act_fn = act
        assert_same(run(layer, inputs), exact(layer, inputs))


def test_a_module_whose_limit_changes_is_asked_again(path):
    layer, inputs = make_layer("clamped"), make_inputs(20, 2)
    for limit in (1.5, 0.5, 3.0):
        layer.limit = limit
        layer._apply_gate = lambda inner, limit=limit: clamped(inner, limit=limit)
        assert_same(run(layer, inputs), exact(layer, inputs))


def test_a_module_is_asked_once(monkeypatch):
    asked = []
    recognise = gates._recognise
    monkeypatch.setattr(gates, "_recognise", lambda module: asked.append(module) or recognise(module))
    layer = make_layer()
    assert gate_of(layer) is gate_of(layer) and len(asked) == 1
    other = copy.deepcopy(layer)
    assert gate_of(other) == gate_of(layer) and len(asked) == 2


def test_known_modules_are_not_kept_alive():
    layer = make_layer()
    assert gate_of(layer)
    last = weakref.ref(layer)
    del layer
    gc.collect()
    assert last() is None


def test_asking_changes_nothing():
    """No random numbers drawn, no gradient recorded, whatever the defaults are."""
    layer, state = make_layer(), torch.get_rng_state()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.inference_mode():
            assert gate_of(layer) == Gate("silu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_formulas_are_those_of_pytorch(kind):
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    act = ACT2FN["gelu_pytorch_tanh" if kind == "gelu_tanh" else kind]
    torch.testing.assert_close(Gate(kind, gated=False)(x), act(x))
    for interleaved, inner in (
        (False, torch.cat((x, x.flip(0)))),
        (True, torch.stack((x, x.flip(0)), -1).reshape(-1)),
    ):
        torch.testing.assert_close(Gate(kind, interleaved=interleaved)(inner), act(x) * x.flip(0))

"""Programs that `torch.export` and `torch.jit.trace` record: they compute the model, also for other inputs.

Nothing may run before a model is recorded: what a first call finds out (the formula of a gate) must not be asked while
tensors have no values.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from native import build, draw
from support import random_ids, tiny_model

from moeba.kernels.gates import gate_of

SLOW = ["dense", "learned_mlp", "capped", "shared_sigmoid", "biased_experts"]
CASES = [("moe", "moeba"), ("moe", "eager")]
CASES += [
    pytest.param(variant, how, marks=pytest.mark.slow) for variant in SLOW for how in ("moeba", "eager")
]
SAME = {"atol": 1e-5, "rtol": 1e-5}


def make(variant: str, experts: str) -> torch.nn.Module:
    smaller = {"num_hidden_layers": 1, "mlp_layer_types": ["sparse"]} if variant == "moe" else {}
    model = tiny_model(variant, **smaller)
    model.set_experts_implementation(experts)
    return model


def export(model: torch.nn.Module, strict: bool = False) -> torch.export.ExportedProgram:
    """For any number of tokens."""
    shapes = {"input_ids": {1: torch.export.Dim("tokens", min=2, max=32)}, "use_cache": None}
    inputs = {"input_ids": random_ids(), "use_cache": False}
    with torch.no_grad():
        return torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=strict)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant, experts", CASES)
def test_a_model_that_never_ran_exports(variant, experts, strict):
    model = make(variant, experts)
    program = export(model, strict)
    other = random_ids(tokens=9, seed=5)
    answer = program.module()(input_ids=other, use_cache=False)["logits"]
    torch.testing.assert_close(answer, model(other, use_cache=False).logits, **SAME)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in operators if "moeba" in name], "it runs where Moeba is not"


@pytest.mark.slow
def test_stock_experts_on_our_kernels_export():
    model = build(draw("mixtral", 0), 0).eval()
    model.set_experts_implementation("moeba")
    ids = random_ids(vocab_size=model.config.vocab_size)
    with torch.no_grad():
        program = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
    answer = program.module()(input_ids=ids, use_cache=False)["logits"]
    torch.testing.assert_close(answer, model(ids, use_cache=False).logits, **SAME)


@pytest.mark.parametrize("variant, experts", [("moe", "moeba"), ("moe", "eager")])
@torch.no_grad()
def test_a_trace_computes_other_inputs(variant, experts):
    model = make(variant, experts)
    model.config.use_cache = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants of a trace
        trace = torch.jit.trace(model, (random_ids(),), strict=False, check_trace=False)
    other = random_ids(seed=7)
    torch.testing.assert_close(trace(other)["logits"], model(other).logits, **SAME)


def test_a_gate_is_not_asked_while_tensors_have_no_values():
    experts = make("moe", "moeba").model.layers[0].mlp.experts
    with torch._subclasses.FakeTensorMode():
        assert gate_of(experts) is None
    assert gate_of(experts).kind == "silu", "and is asked later"

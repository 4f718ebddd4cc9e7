"""Experts classes of transformers, alone: outputs and gradients equal to their own forward."""

from __future__ import annotations

import pytest
import torch
from expert_layers import assert_same, difference, every_expert, exact, make_inputs, run
from native_experts import EXPERTS, HIDDEN, classes_by_name, native_layer

from moeba.kernels import composed, cpu, implementation
from moeba.kernels.gates import gate_of

# One of each kind that there is: gates, layouts, biases, and the best known among the plain ones.
KINDS = {
    "MixtralExperts": "silu",
    "Qwen2MoeExperts": "silu",
    "Qwen3MoeExperts": "silu",
    "OlmoeExperts": "silu",
    "DeepseekV2Experts": "silu",
    "DeepseekV3Experts": "silu",
    "PhimoeExperts": "silu",
    "GraniteMoeExperts": "silu",
    "Ernie4_5_MoeExperts": "silu",
    "Glm4MoeExperts": "silu",
    "HunYuanMoEV1Experts": "silu",
    "MiniMaxM2Experts": "silu",
    "Lfm2MoeExperts": "silu",  # a function, not a module
    "BeamExperts": "silu",  # in float32 whatever the dtype
    "AriaExperts": "silu",  # transposed
    "Gemma4TextExperts": "gelu_tanh",
    "NemotronHExperts": "relu2",  # without a gate
    "GptOssExperts": "clamped",  # interleaved, transposed, biased
    "OpenAIPrivacyFilterExperts": "clamped",  # transposed, biased
    "MiniMaxM3VLExperts": "clamped",
    "DeepseekV4Experts": "limited_silu",
    "HYV4Experts": "limited_silu",
    "MuseSparkExperts": "silu",  # a norm after each expert
}
# Gates that no kernel knows.
UNKNOWN = {"Inkling2Experts", "Inkling2LoopExperts"}
OTHERS = sorted(set(classes_by_name()) - set(KINDS))


def check(name, tokens):
    layer, inputs = native_layer(name), make_inputs(tokens, 3, experts=EXPERTS, hidden=HIDDEN)
    eager = run(native_layer(name, "eager"), inputs)
    assert_same(run(layer, inputs), eager)
    if not layer.has_post_expert_norm:
        assert_same(eager, exact(layer, inputs))
    with torch.no_grad():
        assert difference(layer(*inputs[:3]), eager["output"]) <= 5e-6


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_native_classes(name, tokens, only):
    (spy,) = only("composed" if name == "MuseSparkExperts" else "cpu")
    check(name, tokens)
    assert spy.runs == 2 and not spy.reasons
    (spy,) = only("composed")
    check(name, tokens)
    assert spy.runs == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_class_of_transformers(name, only):
    (spy,) = only("composed" if name in UNKNOWN else "cpu")
    check(name, 30)
    assert spy.runs == 2 and not spy.reasons


@pytest.mark.parametrize("name", KINDS)
def test_gates_of_native_classes(name):
    gate = gate_of(native_layer(name))
    assert gate.kind == KINDS[name]
    assert gate.gated == (name != "NemotronHExperts")
    assert gate.interleaved == (name == "GptOssExperts")
    if gate.kind in ("clamped", "limited_silu"):
        assert gate.limit == 1.25


def test_a_norm_after_each_expert(only):
    kernels, readable = only("cpu", "composed")
    check("MuseSparkExperts", 20)
    assert (kernels.runs, readable.runs) == (0, 2)
    assert "norm" in kernels.reasons[0]


@pytest.mark.parametrize("name", ["MixtralExperts", "GptOssExperts", "NemotronHExperts"])
def test_experts_behind_a_layer_that_keeps_the_default_paths(name):
    """As a user has it: the fastest path first, and no watching."""
    assert implementation.PATHS["cpu"] == (cpu, composed)
    check(name, 12)


# ---- the comparison can fail ----


FAULTS = {
    "another expert": lambda x, index, weights: (x, (index + 1) % EXPERTS, weights),
    "a rounded token": lambda x, index, weights: (x.bfloat16().float(), index, weights),
    "no gradient for the router": lambda x, index, weights: (x, index, weights.detach()),
    "no gradient for the token": lambda x, index, weights: (x.detach(), index, weights),
    "weights in another order": lambda x, index, weights: (x, index, weights.flip(1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault, path, monkeypatch):
    faultless = path.run
    monkeypatch.setattr(path, "run", lambda layer, *given: faultless(layer, *FAULTS[fault](*given)))
    with pytest.raises(AssertionError):
        check("MixtralExperts", 9)


def test_a_gradient_in_the_wrong_place_is_seen():
    layer, inputs = native_layer("MixtralExperts"), make_inputs(9, 3, experts=EXPERTS, hidden=HIDDEN)
    wanted, found = exact(layer, inputs), run(layer, inputs)
    found["down_proj"] = found["down_proj"].roll(1, 0)
    with pytest.raises(AssertionError, match="down_proj differs"):
        assert_same(found, wanted)


def test_the_dense_reference_is_what_transformers_computes():
    layer = native_layer("GptOssExperts", "eager")
    inputs = make_inputs(15, 3, experts=EXPERTS, hidden=HIDDEN)
    with torch.no_grad():
        assert difference(every_expert(layer, *inputs[:3]), layer(*inputs[:3])) < 2e-6

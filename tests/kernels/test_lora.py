"""Grouped adapters of one layer: the same outputs and gradients as PEFT's own path, without its matrices."""

from __future__ import annotations

import copy

import pytest
import torch
from adapted_layers import SIZES, adapt, experts_of, lora_config
from expert_layers import assert_same, difference, make_inputs, make_layer, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

pytest.importorskip("peft")

from moeba.kernels.adapters import composed, frozen, grouping  # noqa: E402
from moeba.kernels.adapters.low_rank import LowRank  # noqa: E402
from moeba.training import group_adapters, ungroup_adapters  # noqa: E402

LAYOUTS = {
    "gated": dict(),
    "transposed interleaved biased": dict(
        kind="clamped", transposed=True, interleaved=True, bias=True, gated=True
    ),
    "transposed": dict(transposed=True),
    "biased": dict(bias=True),
    "ungated": dict(kind="relu2", gated=False),
    "ungated biased": dict(kind="gelu_tanh", gated=False, bias=True),
    "unknown gate": dict(kind="tanh"),
    "one expert": dict(experts=1),
}


@pytest.fixture(params=["frozen", "composed", "on_device"])
def way(request, monkeypatch):
    """Each computation alone, in many small parts; falling back to PEFT's own path fails."""

    def fail(message: str) -> None:
        raise AssertionError(message)

    monkeypatch.setattr(grouping.logger, "warning_once", fail)
    monkeypatch.setattr(frozen, "ROWS", 5)
    if request.param == "composed":
        monkeypatch.setattr(frozen, "obstacle", lambda layer: "another one is asked for")
    if request.param == "on_device":
        monkeypatch.setattr(grouping, "_run", lambda *given: composed.run(*given, composed.OnDevice))
    return request.param


def inputs_for(layer, **options):
    return make_inputs(
        **{
            "hidden": SIZES["hidden"],
            "experts": layer.num_experts,
            "top_k": min(3, layer.num_experts),
            **options,
        }
    )


def build(layout: str = "gated", **options):
    return make_layer(**{**SIZES, **LAYOUTS[layout], **options})


def both_ways(model, inputs):
    """PEFT's own path, and the grouped one."""
    theirs = copy_of(run(experts_of(model), inputs))
    group_adapters(model)
    ours = copy_of(run(experts_of(model), inputs))
    ungroup_adapters(model)
    return ours, theirs


def copy_of(found):
    return {name: None if tensor is None else tensor.clone() for name, tensor in found.items()}


def assert_equal(model, inputs, tolerance=1e-5):
    ours, theirs = both_ways(model, inputs)
    assert_same(ours, theirs, tolerance)
    return ours


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, way):
    layer = build(layout)
    found = assert_equal(adapt(layer), inputs_for(layer))
    # The base is frozen, and adapters are not.
    assert {name for name, tensor in found.items() if tensor is None} == {
        name for name in found if "base_layer." in name and "lora" not in name
    }


def test_adapters_matter():
    layer = build()
    model, inputs = adapt(layer), inputs_for(layer)
    with_adapters = run(experts_of(model), inputs)["output"]
    with model.disable_adapter():
        assert difference(run(experts_of(model), inputs)["output"], with_adapters) > 0.1


FAULTS = {
    "no scaling": lambda of: lambda a, b, experts, scaling: of(a, b, experts, 1.0),
    "experts of B one after the other": lambda of: (
        lambda a, b, experts, scaling: LowRank(
            of(a, b, experts, scaling).first,
            scaling * b.reshape(b.shape[0], experts, -1).transpose(0, 1).contiguous(),
        )
    ),
    "ranks of A before experts": lambda of: (
        lambda a, b, experts, scaling: LowRank(
            a.reshape(-1, experts, a.shape[1]).transpose(0, 1).contiguous(), of(a, b, experts, scaling).second
        )
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault, monkeypatch):
    monkeypatch.setattr(LowRank, "of", FAULTS[fault](LowRank.of))
    layer = build()
    with pytest.raises(AssertionError, match="differs by"):
        assert_equal(adapt(layer), inputs_for(layer))


@pytest.mark.parametrize("layout", ["gated", "transposed interleaved biased"])
@pytest.mark.parametrize("only", [0, 1])
def test_adapters_on_one_of_two_parameters(only, layout, way):
    layer = build(layout)
    assert_equal(adapt(layer, only), inputs_for(layer))


@pytest.mark.parametrize("layout", ["gated", "transposed interleaved biased"])
def test_several_adapters_at_once(layout, way):
    layer = build(layout)
    model = adapt(layer)
    model.add_adapter("other", lora_config(layer, r=8, lora_alpha=3, use_rslora=True))
    model.base_model.set_adapter(["default", "other"])
    found = assert_equal(model, inputs_for(layer))
    assert all(found[name] is not None for name in found if "lora" in name)
    model.set_adapter("other")
    found = assert_equal(model, inputs_for(layer))
    assert all((found[name] is not None) == ("other" in name) for name in found if "lora" in name)


def test_experts_without_tokens_get_zeros(way):
    layer = build()
    inputs = inputs_for(layer)
    inputs = inputs._replace(index=torch.tensor([1, 4, 3]).expand(len(inputs.index), 3))
    found = assert_equal(adapt(layer), inputs)
    a = next(tensor for name, tensor in found.items() if "lora_A" in name)
    norms = a.view(SIZES["experts"], -1).norm(dim=1)
    assert norms[[0, 2, 5]].eq(0).all() and norms[[1, 3, 4]].gt(0).all()


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens, way):
    layer = build()
    assert_equal(adapt(layer), inputs_for(layer, tokens=tokens))


@pytest.mark.parametrize("layout", ["gated", "transposed interleaved biased"])
def test_selections_of_other_devices(layout, way):
    layer = build(layout)
    layer._is_expert_parallel = True
    inputs = inputs_for(layer)
    index, weights = inputs.index.clone(), inputs.weights.clone()
    index[::2, 1] = layer.num_experts
    weights[::2, 1] = 0.0
    assert_equal(adapt(layer), inputs._replace(index=index, weights=weights))


def test_trainable_weights_get_their_gradients(way):
    layer = build("biased")
    model = adapt(layer)
    layer.requires_grad_(True)
    found = assert_equal(model, inputs_for(layer))
    assert all(tensor is not None for tensor in found.values())


def test_norm_after_each_expert(way):
    layer = build(norm=True)
    assert_equal(adapt(layer), inputs_for(layer))


@pytest.mark.parametrize("wanted", ["hidden", "weights", "adapters"])
def test_only_what_is_asked_for(wanted):
    layer = build("biased")
    model, inputs = adapt(layer), inputs_for(layer)

    def gradients():
        hidden, weights = inputs.hidden.detach().clone(), inputs.weights.detach().clone()
        factors = [parameter for name, parameter in model.named_parameters() if "lora" in name]
        leaves = {"hidden": [hidden], "weights": [weights], "adapters": factors}[wanted]
        for tensor in (hidden, weights, *factors):
            tensor.requires_grad_(False)
        for tensor in leaves:
            tensor.requires_grad_(True)
        output = experts_of(model)(hidden, inputs.index, weights)
        return torch.autograd.grad(output, leaves, inputs.change)

    theirs = gradients()
    group_adapters(model)
    for ours, other in zip(gradients(), theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [True, False], ids=["float32 adapters", "bfloat16 adapters"])
@pytest.mark.parametrize("hidden", [torch.float32, torch.bfloat16])
def test_bfloat16_is_closer_to_the_truth_than_pefts_own(keep, hidden, way):
    """PEFT rounds W + B A to 8 bits; products that are added are rounded later."""
    layer = build("biased", dtype=torch.bfloat16)
    model = adapt(layer, r=8, implementation="grouped_mm", autocast_adapter_dtype=keep)
    inputs = inputs_for(layer, dtype=hidden)
    ours, theirs = both_ways(model, inputs)
    exact = copy.deepcopy(model).float()
    truth = copy_of(
        run(experts_of(exact), inputs._replace(hidden=inputs.hidden.float(), weights=inputs.weights.float()))
    )
    assert ours["output"].dtype == hidden
    for name, tensor in ours.items():
        if tensor is not None:
            assert tensor.dtype == theirs[name].dtype, name
            assert difference(tensor, truth[name]) < max(0.02, 1.2 * difference(theirs[name], truth[name])), (
                name
            )


def test_autocast_changes_nothing(way):
    layer = build()
    model, inputs = adapt(layer), inputs_for(layer)
    group_adapters(model)
    plain = copy_of(run(experts_of(model), inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = experts_of(model)(*inputs[:3])
    assert torch.equal(output, plain["output"])


def test_checkpointing(way):
    layer = build()
    model, inputs = adapt(layer), inputs_for(layer)
    group_adapters(model)
    experts = experts_of(model)
    plain = copy_of(run(experts, inputs))
    hidden, weights = inputs.hidden.requires_grad_(), inputs.weights.requires_grad_()
    experts.zero_grad()
    checkpoint(experts, hidden, inputs.index, weights, use_reentrant=False).backward(inputs.change)
    assert torch.equal(hidden.grad, plain["hidden"]) and torch.equal(weights.grad, plain["weights"])
    for name, parameter in experts.named_parameters():
        assert parameter.grad is None or torch.equal(parameter.grad, plain[name]), name


def test_a_compiled_model_breaks_its_graph_at_the_experts():
    layer = build()
    model, inputs = adapt(layer), inputs_for(layer)
    group_adapters(model)
    experts = experts_of(model)
    compiled = torch.compile(lambda *given: experts(*given) * 2, backend="eager")
    torch.testing.assert_close(compiled(*inputs[:3]), 2 * experts(*inputs[:3]))


@pytest.mark.parametrize("way", ["frozen", "composed"], indirect=True)
def test_second_derivatives_are_refused(way):
    layer = build()
    model, inputs = adapt(layer), inputs_for(layer)
    group_adapters(model)
    hidden = inputs.hidden.requires_grad_()
    output = experts_of(model)(hidden, inputs.index, inputs.weights)
    (slope,) = torch.autograd.grad(output.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        slope.square().sum().backward()


class Sizes(TorchDispatchMode):
    """How many elements each new tensor holds; views of the tensors in `known` are not new."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, result.numel())
        return results


@pytest.mark.parametrize("layout", ["gated", "transposed interleaved biased"])
def test_no_tensor_of_all_experts_is_made(layout, way):
    layer = build(layout, experts=48)
    model, inputs = adapt(layer), inputs_for(layer, tokens=4)
    everything = layer.down_proj.numel()  # the smaller of the two

    def largest():
        with Sizes(layer.parameters()) as sizes:
            run(experts_of(model), inputs)
        return sizes.largest

    assert largest() >= everything  # PEFT's own path does, and is seen
    group_adapters(model)
    run(experts_of(model), inputs)  # the first call finds out which gate this is
    assert largest() < everything / 2

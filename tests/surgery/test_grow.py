"""Growing: several copies of every expert, the same function, and what is lost where it is not kept."""

from __future__ import annotations

import json

import native
import pytest
import torch
from mixtures import (
    PLAIN,
    assert_same_function,
    forbid_reading,
    generates,
    mixture,
    native_mixture,
)
from native import load, read_all, snapshot
from transformers import AutoModelForCausalLM

from moeba import MoebaConfig, MoebaForCausalLM
from moeba.cli.app import run
from moeba.conversion import CertificateError
from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.families import FAMILIES
from moeba.surgery.grow import Growth, grow
from moeba.surgery.running.sources import Source

GROUPS = dict(n_group=4, topk_group=2)
ROUTERS = {
    "softmax": dict(),
    "softmax as it is": dict(norm_topk_prob=False, routed_scaling_factor=1.7),
    "softmax with selection bias": dict(router_selection_bias=True, norm_topk_eps=1e-2),
    "sigmoid": dict(scoring_func="sigmoid", router_selection_bias=True, norm_topk_eps=1e-20),
    "sigmoid with a large epsilon": dict(scoring_func="sigmoid", norm_topk_eps=0.5),
    "sigmoid with a floor": dict(scoring_func="sigmoid", norm_topk_min=2.0),
    "sigmoid as it is": dict(scoring_func="sigmoid", norm_topk_prob=False, routed_scaling_factor=2.5),
    "topk_softmax": dict(router_type="topk_softmax", router_bias=True, expert_bias=True),
    "topk_sigmoid": dict(router_type="topk_sigmoid"),
    "topk_sigmoid as it is": dict(router_type="topk_sigmoid", norm_topk_prob=False, expert_bias=True),
    "groups by two": dict(**GROUPS, scoring_func="sigmoid", router_selection_bias=True),
    "groups by one": dict(**GROUPS, group_scoring="max"),
    "groups that score 0": dict(**GROUPS, group_mask="zero"),
    "all groups open": dict(n_group=4, topk_group=4),
    "uneven layers": dict(per_layer_config={1: {"num_experts": 5, "num_experts_per_tok": 2}}),
    "shared expert": dict(
        shared_expert_intermediate_size=16, shared_expert_gate=True, shared_expert_combination="average",
        feed_forward_type="mlp", mlp_layer_types=["dense", "sparse"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("times", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("router", ROUTERS)
def test_function_is_kept(tmp_path, router, times):
    source = mixture(tmp_path / "moe", **ROUTERS[router])
    result = grow(source, tmp_path / "grown", times=times, certificate=False)
    assert result.gap is None
    before, after = (MoebaConfig.from_pretrained(folder) for folder in (source, tmp_path / "grown"))
    for layer in before.sparse_layers:
        a, b = before.per_layer_config[layer], after.per_layer_config[layer]
        assert b.num_experts == times * a.num_experts
        assert b.num_experts_per_tok == times * a.num_experts_per_tok
    assert_same_function(source, tmp_path / "grown")
    assert json.loads((tmp_path / "grown" / "surgery.json").read_text())["exact"] is True


@pytest.mark.parametrize(
    "router",
    [
        "groups by two",
        *(pytest.param(f"{name} as it is", marks=pytest.mark.slow) for name in ("sigmoid", "topk_sigmoid")),
    ],
)
def test_certificate(tmp_path, router):
    source = mixture(tmp_path / "moe", **ROUTERS[router])
    certificate = grow(source, tmp_path / "grown", times=2).certificate
    assert (certificate.verdict, certificate.operation) == ("verified", "grow")
    assert all(control.caught for control in certificate.negative_controls)
    faults = {control.fault for control in certificate.negative_controls}
    assert {"router rows rolled by one", "one expert fewer a token"} <= faults
    checks = {check.name: check for check in certificate.checks}
    assert checks["new tensors"].figures["tensors"] >= 6
    assert checks["copies"].figures == {"float32": 1.0}


@pytest.mark.parametrize(
    "router, method, value",
    [
        ("sigmoid as it is", "factors", lambda self: {0: 1.0, 1: 1.0}),
        pytest.param("groups by two", "copies_groups", property(lambda self: False), marks=pytest.mark.slow),
        pytest.param("softmax with selection bias", "_change", lambda self: None, marks=pytest.mark.slow),
    ],
)
def test_a_fault_of_the_operation_fails_its_proof(tmp_path, monkeypatch, router, method, value):
    source = mixture(tmp_path / "moe", **ROUTERS[router])
    monkeypatch.setattr(Growth, method, value)
    with pytest.raises(CertificateError):
        grow(source, tmp_path / "grown", times=2)
    assert not (tmp_path / "grown").exists()


def test_copies_lie_side_by_side(tmp_path):
    source = mixture(tmp_path / "moe", shared_expert_intermediate_size=8)
    grow(source, tmp_path / "grown", experts=24, certificate=False)
    before, after = read_all(source), read_all(tmp_path / "grown")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        by_expert = ".experts." in name or ".mlp.gate." in name
        assert torch.equal(after[name], tensor.repeat_interleave(2, dim=0) if by_expert else tensor), name


@pytest.mark.parametrize(
    "model_type, fields",
    [
        ("mixtral", dict(PLAIN, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
        ("qwen2_moe", {}),
        ("deepseek_v3", {}),
    ],
)
def test_native_to_native(tmp_path, model_type, fields):
    source = native_mixture(tmp_path / "native", model_type, **fields)
    grow(source, tmp_path / "grown", times=2, to=model_type, export=True, certificate=model_type == "mixtral")
    assert_same_function(source, tmp_path / "grown", AutoModelForCausalLM, AutoModelForCausalLM)
    generates(tmp_path / "grown", AutoModelForCausalLM)
    config = load(AutoModelForCausalLM, tmp_path / "grown").config
    assert config.model_type == model_type
    if model_type == "mixtral":
        assert (config.num_local_experts, config.num_experts_per_tok) == (8, 4)
        assert "model.layers.0.block_sparse_moe.experts.7.w1.weight" in Checkpoint(tmp_path / "grown").tensors


MIXTURES = [name for name, family in FAMILIES.items() if family.kind == "moe" and name != "phimoe"]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MIXTURES)
def test_every_native_family_holds_its_grown_models(tmp_path, model_type):
    """Of the family's random configs the first one with experts."""
    for seed in range(20):
        source = native.make(tmp_path / f"native {seed}", model_type, seed=seed)
        if Source(source).config.sparse_layers:
            break
    grow(source, tmp_path / "grown", times=2, to=model_type, export=True, certificate=False)
    assert_same_function(source, tmp_path / "grown", AutoModelForCausalLM, AutoModelForCausalLM)


def test_what_changes_the_function_is_measured(tmp_path):
    source = mixture(tmp_path / "moe")
    text = [tmp_path / "text"]
    gaps = {}
    for name, fields in {
        "same top-k": dict(top_k=3), "noise": dict(noise=0.05), "more noise": dict(noise=0.5)
    }.items():  # fmt: skip
        result = grow(source, tmp_path / name, times=2, calibration=text, **fields)
        assert result.certificate is None and result.gap["tokens"] > 500 and result.gap["text"] == "text"
        gaps[name] = result.gap["kl"]
        assert json.loads((tmp_path / name / "surgery.json").read_text())["exact"] is False
    assert all(kl > 1e-5 for kl in gaps.values())
    assert gaps["noise"] < gaps["more noise"] / 4
    assert MoebaConfig.from_pretrained(tmp_path / "same top-k").num_experts_per_tok == 3
    generates(tmp_path / "noise", MoebaForCausalLM)


def test_noise_leaves_the_first_copy_alone(tmp_path):
    source = mixture(tmp_path / "moe", router_bias=True)
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        grow(source, tmp_path / name, times=3, noise=0.1, seed=seed, certificate=False)
    before, one, again, two = (read_all(tmp_path / name) for name in ("moe", "one", "again", "two"))
    for name, tensor in before.items():
        if ".experts." not in name and ".mlp.gate." not in name:
            continue
        assert torch.equal(one[name][::3], tensor)
        assert torch.equal(one[name], again[name])
        if name.endswith("bias"):
            assert torch.equal(one[name][1::3], tensor)
            continue
        noise = one[name][1::3] - tensor
        spread = tensor.flatten(1).std(dim=1)
        assert torch.allclose(noise.flatten(1).std(dim=1), 0.1 * spread, rtol=0.5)
        assert not torch.equal(one[name][1::3], one[name][2::3])
        assert not torch.equal(one[name][1::3], two[name][1::3])


def test_a_bf16_factor_is_exact_or_refused(tmp_path):
    source = mixture(tmp_path / "moe", lambda model: model.bfloat16(), **ROUTERS["topk_sigmoid as it is"])
    grow(source, tmp_path / "grown", times=2, certificate=False)
    a, b = (
        read_all(folder)["model.layers.0.mlp.experts.down_proj"] for folder in (source, tmp_path / "grown")
    )
    assert torch.equal(b[::2], a / 2) and b.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"cannot be scaled by \[0.333.*\] without rounding"):
        grow(source, tmp_path / "other", times=3)


def test_refusals(tmp_path):
    source = mixture(tmp_path / "moe")
    mixed = mixture(tmp_path / "mixed", router_type="sparsemixer", num_experts_per_tok=2)
    blind = mixture(tmp_path / "blind", **GROUPS, group_mask="zero", router_selection_bias=True)
    uneven = mixture(tmp_path / "uneven", **ROUTERS["uneven layers"])
    dense = mixture(tmp_path / "dense", num_experts=0)
    cases = [
        (source, {}, "say either times"),
        (source, dict(times=2, experts=24), "say either times"),
        (source, dict(times=1), "times=1 must be at least 2"),
        (source, dict(experts=30), "experts=30 must be 2 or more times the 12"),
        (source, dict(experts=12), "experts=12 must be 2 or more times"),
        (uneven, dict(experts=60), "different numbers of experts .*say times"),
        (source, dict(times=2, top_k=25), "num_experts_per_tok=25 must be between 1 and num_experts=24"),
        (source, dict(times=2, noise=-1.0), "noise=-1.0"),
        (source, dict(times=2, calibration=[tmp_path / "text"]), "growing keeps the function here"),
        (source, dict(times=2, to="mixtral"), "'mixtral' cannot hold this model: router_weight_dtype"),
        (source, dict(times=2, export=True), "no native family can hold this model exactly"),
        (mixed, dict(times=2), "router_type='sparsemixer' always picks 2 experts"),
        (blind, dict(times=2), "group_mask='zero' with a selection bias"),
        (dense, dict(times=2), "no experts to grow: it is a dense model"),
    ]
    for folder, options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            grow(folder, tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    assert grow(mixed, tmp_path / "out", times=2, top_k=2).gap["kl"] > 0


def test_dry_run_and_command(tmp_path, monkeypatch, capsys):
    source = mixture(tmp_path / "moe")
    for name in ("one", "two"):
        assert run(["grow", str(source), str(tmp_path / name), "--times", "2", "--no-certify"]) == 0
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    record = json.loads((tmp_path / "one" / "surgery.json").read_text())
    assert (record["operation"], record["recipe"]["times"]) == ("grow", 2)
    forbid_reading(monkeypatch)
    capsys.readouterr()
    assert run(["grow", str(source), str(tmp_path / "out"), "--times", "2", "--dry-run"]) == 0
    assert "mlp.gate.weight [24, 32] <- model.layers.1.mlp.gate.weight" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()

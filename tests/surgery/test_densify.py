"""Densifying: an untrained upcycle gives back its dense model; of anything else the loss is measured."""

from __future__ import annotations

import importlib
import json

import native
import pytest
import torch
from mixtures import (
    PLAIN,
    TEXT,
    assert_same_function,
    forbid_reading,
    generates,
    mixture,
    native_mixture,
    with_text,
)
from native import load, read_all, same_tensors, snapshot
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moeba import MoebaConfig, MoebaForCausalLM, convert, upcycle
from moeba.cli.app import run
from moeba.conversion import CertificateError
from moeba.surgery.densify import densify
from moeba.surgery.experts.likeness import Likeness
from moeba.surgery.grow import grow

LLAMA = dict(PLAIN, attention_bias=False, mlp_bias=False)
GPT2 = dict(n_layer=2, n_embd=24, n_head=3, n_inner=None)
UPCYCLES = {
    "copies": ("llama", LLAMA, dict(experts=5, top_k=2, layers="all")),
    "copies in the last layer": ("llama", LLAMA, dict(experts=4, top_k=2, layers="last:1")),
    "a native mixture": ("llama", LLAMA, dict(experts=4, top_k=2, layers="all", export=True)),
    "parts": ("llama", LLAMA, dict(experts=8, top_k=4, method="fine-grained", granularity=4, layers="all")),
    "three parts": ("llama", LLAMA, dict(experts=6, top_k=3, method="fine-grained", granularity=3)),
    "a shared expert": ("llama", LLAMA, dict(experts=4, top_k=2, shared_expert=True)),
    "an empty shared expert": ("llama", LLAMA, dict(experts=4, top_k=2, layers="all", to="qwen2_moe")),
    "sigmoid": ("llama", LLAMA, dict(experts=4, top_k=2, to="glm4_moe")),
    "no gate": ("gpt2", GPT2, dict(experts=4, top_k=2)),
    "parts and a shared expert": (
        "gpt2", GPT2, dict(experts=8, top_k=4, method="fine-grained", granularity=4, shared_expert=True, layers="all"),
    ),
    "grown": ("llama", LLAMA, dict(experts=2, top_k=1, layers="all")),
}  # fmt: skip


@pytest.mark.parametrize("name", UPCYCLES)
def test_an_untrained_upcycle_gives_back_its_dense_model(tmp_path, name):
    model_type, fields, options = UPCYCLES[name]
    source = native.make(tmp_path / "dense", model_type, **fields)
    upcycle(source, tmp_path / "moe", certificate=False, **options)
    moe = tmp_path / "moe"
    if name == "grown":
        grow(moe, tmp_path / "grown", times=2, certificate=False)
        moe = tmp_path / "grown"
    densify(moe, tmp_path / "out", to=model_type, export=True, certificate=False)
    record = json.loads((tmp_path / "out" / "surgery.json").read_text())
    assert (record["operation"], record["exact"]) == ("densify", True)
    if name == "three parts":  # a third of the triple may round
        assert_same_function(source, tmp_path / "out", AutoModelForCausalLM, AutoModelForCausalLM)
    else:
        same_tensors(read_all(source), read_all(tmp_path / "out"))
    generates(tmp_path / "out", AutoModelForCausalLM)


@pytest.mark.parametrize(
    "name, to",
    [
        ("parts", "auto"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("a shared expert", "llama"), ("an empty shared expert", "auto"), ("no gate", "gpt2"),
                         ("copies in the last layer", "llama"), ("parts and a shared expert", "auto")]
        ),
    ],
)  # fmt: skip
def test_certificate(tmp_path, name, to):
    model_type, fields, options = UPCYCLES[name]
    source = native.make(tmp_path / "dense", model_type, **fields)
    upcycle(source, tmp_path / "moe", certificate=False, **options)
    certificate = densify(tmp_path / "moe", tmp_path / "out", to=to, export=to != "auto").certificate
    assert (certificate.verdict, certificate.operation) == ("verified", "densify")
    assert certificate.negative_controls and all(control.caught for control in certificate.negative_controls)
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["verdict"] == "verified"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [dict(), dict(method="load"), dict(method="expert", expert=2)])
def test_every_method_is_exact_for_copies(tmp_path, method, dtype):
    config = type(native.draw("llama", 0))(
        **{**native.plain(native.draw("llama", 0)), **LLAMA, "vocab_size": 300}
    )
    source = native.save(native.build(config, dtype=dtype), tmp_path / "dense")
    with_text(source)
    upcycle(source, tmp_path / "moe", experts=3, top_k=2, layers="all", certificate=False)
    text = dict(calibration=[tmp_path / "text"]) if method.get("method") == "load" else {}
    densify(tmp_path / "moe", tmp_path / "out", to="llama", export=True, certificate=False, **method, **text)
    same_tensors(read_all(source), read_all(tmp_path / "out"))


def test_a_trained_upcycle_is_measured(tmp_path):
    """One number of one expert is enough."""
    source = with_text(native.make(tmp_path / "dense", "llama", **LLAMA, vocab_size=300))
    upcycle(source, tmp_path / "moe", experts=4, top_k=2, layers="all", certificate=False)
    tensors = load_file(tmp_path / "moe" / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj"][3, 5, 7] += 1
    save_file(tensors, tmp_path / "moe" / "model.safetensors", {"format": "pt"})
    result = densify(tmp_path / "moe", tmp_path / "out")
    assert result.certificate is None and 0 < result.gap["kl"] < 0.1
    record = json.loads((tmp_path / "out" / "surgery.json").read_text())
    assert record["exact"] is False and record["reports"]["experts"]["layers_with_unequal_experts"] == 1


def test_a_wrong_claim_fails_its_proof(tmp_path, monkeypatch):
    source = mixture(tmp_path / "moe")
    module = importlib.import_module("moeba.surgery.densify")  # the package has a function of that name
    monkeypatch.setattr(module, "look", lambda *_: Likeness([], True, True, False))
    with pytest.raises(CertificateError):
        densify(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def dense_answer(folder, layer, expert, inputs):
    """What a plain loop says one expert answers."""
    tensors = read_all(folder)
    prefix = f"model.layers.{layer}.mlp.experts."
    gate, up = (inputs @ tensors[f"{prefix}gate_up_proj"][expert].T).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up) @ tensors[f"{prefix}down_proj"][expert].T


@pytest.mark.parametrize("combination, half", [("sum", 1.0), ("average", 0.5)])
def test_neurons_of_a_shared_expert_stand_beside_the_others(tmp_path, combination, half):
    fields = dict(shared_expert_intermediate_size=10, shared_expert_combination=combination)
    source = mixture(
        tmp_path / "moe", routed_scaling_factor=1.5, mlp_layer_types=["dense", "sparse"], **fields
    )
    densify(source, tmp_path / "out", method="expert", expert=4, certificate=False)
    config = MoebaConfig.from_pretrained(tmp_path / "out")
    assert [layer.intermediate_size for layer in config.per_layer_config] == [48, 34]
    model, sparse = load(MoebaForCausalLM, tmp_path / "out"), load(MoebaForCausalLM, source)
    inputs = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    shared = sparse.model.layers[1].mlp.shared_expert(inputs)
    expected = half * (1.5 * dense_answer(source, 1, 4, inputs) + shared)
    assert torch.allclose(model.model.layers[1].mlp(inputs), expected, atol=1e-5)


def test_averages_and_loads(tmp_path):
    source = mixture(tmp_path / "moe", expert_bias=True, num_hidden_layers=2)
    for name, options in {
        "average": {},
        "load": dict(method="load", calibration=[tmp_path / "text"]),
    }.items():
        densify(source, tmp_path / name, certificate=False, **options)
    before, average, load_ = (read_all(tmp_path / name) for name in ("moe", "average", "load"))
    loads = json.loads((tmp_path / "load" / "surgery.json").read_text())["reports"]["loads"]
    for layer in (0, 1):
        down = before[f"model.layers.{layer}.mlp.experts.down_proj"]
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        assert torch.allclose(average[name], down.mean(dim=0), atol=1e-6)
        shares = torch.tensor(loads[str(layer)])
        assert shares.sum() == pytest.approx(1, abs=1e-4) and shares.max() > 1.5 / 12
        assert torch.allclose(load_[name], (shares[:, None, None] * down).sum(dim=0), atol=1e-5)
        bias = before[f"model.layers.{layer}.mlp.experts.gate_up_proj_bias"].mean(dim=0)
        found = [average[f"model.layers.{layer}.mlp.{part}_proj.bias"] for part in ("gate", "up")]
        assert torch.allclose(torch.cat(found), bias, atol=1e-6)


def test_weights_that_do_not_sum_to_one_count_as_on_average(tmp_path):
    source = mixture(tmp_path / "moe", norm_topk_prob=False, expert_bias=True)
    result = densify(source, tmp_path / "out", method="expert", expert=1, calibration=[tmp_path / "text"])
    assert result.gap["text"] == "text" and any("do not sum to 1 here" in note for note in result.plan.notes)
    totals = json.loads((tmp_path / "out" / "surgery.json").read_text())["reports"]["total_weight"]
    before, after = read_all(source), read_all(tmp_path / "out")
    for layer, total in totals.items():
        assert 3 / 12 < total < 1
        for part, dense in (("down_proj", "down_proj.weight"), ("down_proj_bias", "down_proj.bias")):
            routed = before[f"model.layers.{layer}.mlp.experts.{part}"][1]
            assert torch.allclose(after[f"model.layers.{layer}.mlp.{dense}"], total * routed, rtol=1e-4)


def test_native_sources_and_granularity_by_hand(tmp_path):
    """The record of an upcycle travels with an export; where it is gone, an argument says what it said."""
    source = native.make(tmp_path / "dense", "llama", **LLAMA)
    options = dict(experts=8, top_k=4, method="fine-grained", granularity=4, layers="all", export=True)
    upcycle(source, tmp_path / "mixtral", certificate=False, **options)
    convert(tmp_path / "mixtral", tmp_path / "moe", certificate=False)
    densify(tmp_path / "moe", tmp_path / "out", certificate=False, to="llama", export=True)
    same_tensors(read_all(source), read_all(tmp_path / "out"))
    for name in ("surgery.json", "moeba_provenance.json"):
        (tmp_path / "mixtral" / name).unlink()
    densify(
        tmp_path / "mixtral", tmp_path / "again", granularity=4, certificate=False, to="llama", export=True
    )
    same_tensors(read_all(source), read_all(tmp_path / "again"))
    wrong = densify(tmp_path / "mixtral", tmp_path / "wrong", to="llama", export=True)
    assert wrong.gap["kl"] > 0.01
    grow(tmp_path / "moe", tmp_path / "grown", times=2, certificate=False)
    with pytest.raises(ValueError, match=r"parts of a whole, 4 each, and were changed since \(grow\)"):
        densify(tmp_path / "grown", tmp_path / "x")


def test_a_native_mixture_becomes_native_dense(tmp_path):
    source = native_mixture(
        tmp_path / "mixtral", "mixtral", **dict(PLAIN, num_local_experts=4, sliding_window=None)
    )
    result = densify(source, tmp_path / "out", calibration=[tmp_path / "text"], export=True)
    assert result.gap["kl"] > 0
    generates(tmp_path / "out", AutoModelForCausalLM)
    assert load(AutoModelForCausalLM, tmp_path / "out").config.model_type == "llama"


def test_refusals(tmp_path):
    source = mixture(tmp_path / "moe")
    gated = mixture(tmp_path / "gated", shared_expert_intermediate_size=8, shared_expert_gate=True)
    normed = mixture(tmp_path / "normed", moe_output_norm=True)
    learned = mixture(
        tmp_path / "learned", feed_forward_type="mlp", hidden_act="xielu", shared_expert_intermediate_size=8
    )
    dense = mixture(tmp_path / "dense", num_experts=0)
    cases = [
        (source, dict(method="median"), "method='median': choose one of average, load, expert"),
        (source, dict(method="expert"), "method='expert' with expert=None"),
        (source, dict(expert=1), "method='average' with expert=1"),
        (source, dict(method="expert", expert=12), "expert=12 must be between 0 and 11"),
        (source, dict(method="load"), "needs calibration text files"),
        (source, dict(granularity=5), "granularity=5 does not divide the 12 experts of layer 0"),
        (source, dict(granularity=0), "granularity=0 does not divide"),
        (source, dict(to="gpt2"), "'gpt2' cannot hold this model"),
        (gated, {}, "shared_expert_gate=True: the shared expert counts more for some tokens"),
        (normed, {}, "moe_output_norm=True"),
        (learned, {}, "hidden_act='xielu' learns"),
        (dense, {}, "no experts to densify: it is a dense model"),
    ]
    for folder, options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            densify(folder, tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_dry_run_and_command(tmp_path, monkeypatch, capsys):
    source = mixture(tmp_path / "moe")
    assert len(TEXT) > 8000
    for name in ("one", "two"):
        words = ["--method", "load", "--calibration", str(tmp_path / "text")]
        assert run(["densify", str(source), str(tmp_path / name), *words]) == 0
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    forbid_reading(monkeypatch)
    capsys.readouterr()
    assert run(["densify", str(source), str(tmp_path / "out"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "gate_proj.weight [24, 32]" in out and "decided by comparing the experts" in out
    assert not (tmp_path / "out").exists()

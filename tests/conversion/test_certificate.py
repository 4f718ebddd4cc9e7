"""The certificate: it must pass what is right, name what is wrong, and be worth nothing when its own controls are."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import native
import pytest
import torch
from native import build, draw, save
from safetensors.torch import load_file, save_file
from support import SIZES, VARIANTS, tiny_model
from transformers import AutoModelForCausalLM

from moeba import MoebaConfig, MoebaForCausalLM, certify, convert, export, upcycle
from moeba.configuration.model_facts import layer_view
from moeba.conversion import FAMILIES, CertificateError
from moeba.conversion.certificate import Certificate, Check, proof
from moeba.conversion.certificate.battery import build_battery
from moeba.conversion.certificate.controls import FAULTS
from moeba.conversion.certificate.fault import Fault
from moeba.conversion.certificate.planted import KINDS, FaultKind, plant
from moeba.conversion.certificate.report import Control
from moeba.conversion.certificate.run import EXACT, Run
from moeba.conversion.certificate.twin import shrink
from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.config_rows import Fixed, Pair
from moeba.conversion.families import family_of
from moeba.conversion.families.shared.tensors import LAYER
from moeba.conversion.rows import Row, Transpose


def assert_verified(certificate: Certificate) -> None:
    assert certificate.verdict == "verified", certificate.lines()
    assert certificate.negative_controls and all(control.caught for control in certificate.negative_controls)
    assert certificate.first_divergence is None
    for check in certificate.checks:
        assert check.status in ("verified", "not applicable"), check


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3", "qwen3_moe"])
def test_in_and_out_are_certified(tmp_path, model_type):
    source = save(build(draw(model_type, 0)), tmp_path / "native")
    certificate = convert(source, tmp_path / "moeba").certificate
    assert_verified(certificate)
    reason = family_of(model_type).reordered
    logits = [check for check in certificate.checks if check.name.startswith("logits,")]
    assert logits and all(bool(reason) == ("; stock" in check.detail) for check in logits)
    assert all(reason in check.detail for check in logits)
    assert_verified(export(tmp_path / "moeba", tmp_path / "back", to=model_type).certificate)


def test_generation_settings_that_ask_for_more_than_tokens(tmp_path):
    source = save(build(draw("llama", 0)), tmp_path / "native")
    path = source / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"return_dict_in_generate": True}))
    assert_verified(convert(source, tmp_path / "moeba").certificate)


def swap(first: str, second: str):
    """A table with the names of two of our tensors exchanged."""

    def change(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        there = {first: second, second: first}
        return tuple(replace(row, ours=tuple(there.get(name, name) for name in row.ours)) for row in rows)

    return change


def with_operations(name: str, operations: tuple):
    """A table in which the row of one of our tensors does something else."""

    def change(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        assert any(name in row.ours for row in rows)
        return tuple(replace(row, operations=operations) if name in row.ours else row for row in rows)

    return change


ATTENTION = f"{LAYER}.self_attn"
BROKEN_ROWS = {
    "norms swapped": (
        "llama",
        swap(f"{LAYER}.input_layernorm.weight", f"{LAYER}.post_attention_layernorm.weight"),
        "model.layers.0.input_layernorm",
    ),
    "gate and up swapped": (
        "llama",
        swap(f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight"),
        "model.layers.0.mlp.gate_proj",
    ),
    "output projection transposed": (
        "llama",
        with_operations(f"{ATTENTION}.o_proj.weight", (Transpose(),)),
        "model.layers.0.self_attn.o_proj",
    ),
    "query and key swapped": (
        "gpt2",
        lambda rows: tuple(
            replace(row, ours=(row.ours[1], row.ours[0], row.ours[2])) if len(row.ours) == 3 else row
            for row in rows
        ),
        "model.layers.0.self_attn.o_proj",
    ),
    "feed-forward not transposed": ("gpt2", with_operations(f"{LAYER}.mlp.up_proj.weight", ()), "mlp.up_proj"),
    "experts' gate and up swapped": (
        "mixtral",
        lambda rows: tuple(
            replace(row, theirs=row.theirs[::-1]) if row.ours[0].endswith("gate_up_proj") else row for row in rows
        ),
        "model.layers.0.mlp.experts",
    ),
    "query and key norms swapped": (
        "qwen3_moe",
        swap(f"{ATTENTION}.q_norm.weight", f"{ATTENTION}.k_norm.weight"),
        "model.layers.0.self_attn.q_norm",
    ),
}  # fmt: skip
SQUARE = dict(intermediate_size=24, hidden_size=24, num_attention_heads=3, num_key_value_heads=3, head_dim=8)
SQUARE |= dict(rope_parameters={"rope_type": "default", "rope_theta": 500.0}, num_hidden_layers=2)
SHAPES = {
    "gpt2": dict(n_embd=24, n_inner=24, n_head=3, n_layer=2),
    "mixtral": {**SQUARE, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_broken_weight_rows_are_caught_and_located(tmp_path, monkeypatch, name):
    """The table's own inverse undoes each of these, so bytes alone come back right."""
    model_type, change, where = BROKEN_ROWS[name]
    # All matrices square, so that no shape gives the fault away.
    source = native.make(tmp_path / "native", model_type, **SHAPES.get(model_type, SQUARE))
    if name == "feed-forward not transposed":
        monkeypatch.setattr("moeba.conversion.certificate.twin.shrink", lambda config: config)
    family = FAMILIES[model_type]
    monkeypatch.setitem(FAMILIES, model_type, replace(family, rows=change(family.rows)))
    with pytest.raises(CertificateError) as caught:
        convert(source, tmp_path / "moeba")
    assert not (tmp_path / "moeba").exists()
    certificate = caught.value.certificate
    assert certificate.verdict == "failed"
    assert certificate.keys["round_trip"] == "bitwise"
    assert where in certificate.first_divergence
    assert "logits" in str(caught.value) and certificate.first_divergence in str(caught.value)
    assert "\n" not in str(caught.value)


BROKEN_CONFIG = {
    "theta doubled": (
        "llama",
        Pair(
            "rope_parameters",
            "rope_parameters",
            ours_from=lambda rope: {**rope, "rope_theta": rope["rope_theta"] * 2},
            theirs_from=lambda rope: {**rope, "rope_theta": rope["rope_theta"] / 2},
        ),
    ),
    "epsilon of another order": (
        "llama", Pair("rms_norm_eps", "norm_eps", ours_from=lambda e: e * 10, theirs_from=lambda e: e / 10),
    ),
    "layer norm without bias": ("gpt2", Fixed("norm_eps", 1e-4, ("layer_norm_epsilon",))),
    "renormalised": ("mixtral", Fixed("norm_topk_prob", False)),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_CONFIG)
def test_broken_config_rows_are_caught(tmp_path, monkeypatch, name):
    model_type, row = BROKEN_CONFIG[name]
    fields = {"rms_norm_eps": 1e-3} if name.startswith("epsilon") else {}
    source = native.make(tmp_path / "native", model_type, **SHAPES.get(model_type, SQUARE), **fields)
    family = FAMILIES[model_type]
    kept = [other for other in family.config_rows if getattr(other, "our_name", "") != row.our_name]
    monkeypatch.setitem(FAMILIES, model_type, replace(family, config_rows=(*kept, row)))
    with pytest.raises(CertificateError, match="logits.*first divergence: model"):
        convert(source, tmp_path / "moeba")
    assert not (tmp_path / "moeba").exists()


def certificate_of(checks=(), controls=()) -> Certificate:
    return Certificate("convert", {}, {}, {}, checks=list(checks), negative_controls=list(controls))


def test_verdict():
    good, bad = Check("logits", "verified"), Check("logits", "failed")
    caught, missed = Control("a", True, 1.0), Control("b", False, 0.0)
    assert certificate_of([good], [caught]).verdict == "verified"
    assert certificate_of([good, bad], [caught]).verdict == "failed"
    assert certificate_of([good], []).verdict == "void"
    assert certificate_of([], [caught]).verdict == "void"
    assert certificate_of([good], [caught, missed]).verdict == "void"
    assert certificate_of([Check("logits", "unverified")], [caught]).verdict == "void"
    error = CertificateError(certificate_of([good], [caught, missed]))
    assert "the planted fault 'b' went unnoticed" in str(error)


def test_unnoticed_fault_publishes_nothing(tmp_path, monkeypatch):
    harmless = Fault("nothing at all", lambda config: True, lambda model: None)
    monkeypatch.setattr(
        "moeba.conversion.certificate.planted.KINDS", (FaultKind((harmless,), KINDS[-1].notice),)
    )
    source = native.make(tmp_path / "native", "llama")
    with pytest.raises(CertificateError, match="void: the planted fault 'nothing at all' went unnoticed"):
        convert(source, tmp_path / "moeba")
    assert not (tmp_path / "moeba").exists()


def test_fresh_weights_are_no_evidence(tmp_path):
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(draw("llama", 0))
    save(fresh, tmp_path / "native")
    shutil.copytree(tmp_path / "native", tmp_path / "copy")
    assert certify(tmp_path / "native", tmp_path / "copy").verdict == "void"
    # Through a family's rows the twin is random whatever the checkpoint holds.
    assert_verified(convert(tmp_path / "native", tmp_path / "moeba").certificate)


def test_two_native_folders_and_two_of_ours(tmp_path):
    source = native.make(tmp_path / "native", "qwen3", seed=1)
    convert(source, tmp_path / "moeba", certificate=False)
    export(tmp_path / "moeba", tmp_path / "back", to="qwen3", certificate=False)
    assert_verified(certify(source, tmp_path / "back"))
    shutil.copytree(tmp_path / "moeba", tmp_path / "copy")
    assert_verified(certify(tmp_path / "moeba", tmp_path / "copy"))


def test_what_parity_json_says(tmp_path):
    source = save(build(draw("mixtral", 0)), tmp_path / "native", shards=True)
    result = convert(source, tmp_path / "moeba", max_shard_size="8KB")
    told = json.loads((tmp_path / "moeba" / "parity.json").read_text())
    assert told == json.loads(json.dumps(result.certificate.to_dict(), default=str))
    assert (told["format_version"], told["verdict"], told["operation"]) == (1, "verified", "convert")
    for side, folder, model_type in (("source", source, "mixtral"), ("target", tmp_path / "moeba", "moeba")):
        files = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")
        }
        assert told[side]["files"] == files
        assert told[side]["model_type"] == model_type
    assert told["config_differences"] == []
    keys = told["keys"]
    assert (keys["missing"], keys["unexpected"], keys["changed"], keys["round_trip"]) == (
        [],
        [],
        [],
        "bitwise",
    )
    assert keys["source"] == len(Checkpoint(source).tensors)
    assert keys["target"] == len(Checkpoint(tmp_path / "moeba").tensors)
    assert set(told["versions"]) == {"moeba", "torch", "transformers"}
    by_name = {(check["name"], check["on"]): check for check in told["checks"]}
    for on in ("randomised twin", "checkpoint"):
        for implementation in ("eager", "sdpa"):
            assert by_name[f"logits, {implementation} attention", on]["figures"]["bitwise"] is True
        assert by_name["router choices", on]["figures"]["same_experts"] == 1.0


def test_certificate_names_where_the_published_folder_lies(tmp_path):
    """Not the hidden folder in which it was made."""
    source = native.make(tmp_path / "native", "llama")
    result = convert(source, tmp_path / "moeba")
    assert (result.certificate.source["path"], result.certificate.target["path"]) == ("native", "moeba")


def test_unrelated_checkpoints_fail(tmp_path):
    first = save(build(draw("llama", 0), seed=0), tmp_path / "first")
    other = save(build(draw("llama", 0), seed=1), tmp_path / "other")
    certificate = certify(first, other, output=tmp_path / "parity.json")
    assert certificate.verdict == json.loads((tmp_path / "parity.json").read_text())["verdict"] == "failed"
    assert certificate.first_divergence == "model.embed_tokens (checkpoint)"
    failed = {check.name for check in certificate.checks if check.status == "failed"}
    assert {"tensors", "logits, eager attention", "hidden states", "gradient", "greedy tokens"} <= failed


def test_checkpoints_of_other_shapes_fail(tmp_path):
    first = native.make(tmp_path / "first", "llama", **SQUARE)
    other = native.make(tmp_path / "other", "llama", **{**SQUARE, "hidden_size": 48, "vocab_size": 50})
    certificate = certify(first, other)
    assert certificate.verdict == "failed"
    assert {"hidden_size", "vocab_size"} <= {item["field"] for item in certificate.config_differences}


def test_one_changed_value_fails(tmp_path):
    source = native.make(tmp_path / "native", "qwen3", seed=1)
    convert(source, tmp_path / "moeba", certificate=False)
    file = tmp_path / "moeba" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.k_norm.weight"][0] += 0.01
    save_file(tensors, file, {"format": "pt"})
    certificate = certify(source, tmp_path / "moeba")
    assert certificate.verdict == "failed"
    assert certificate.keys["changed"] == ["model.layers.0.self_attn.k_norm.weight"]
    assert certificate.first_divergence == "model.layers.0.self_attn.k_norm (checkpoint)"


def test_one_changed_config_field_fails(tmp_path):
    source = native.make(tmp_path / "native", "llama")
    convert(source, tmp_path / "moeba", certificate=False)
    path = tmp_path / "moeba" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "norm_eps": 0.5}))
    certificate = certify(source, tmp_path / "moeba")
    assert certificate.verdict == "failed"
    assert [item["field"] for item in certificate.config_differences] == ["norm_eps"]
    assert certificate.config_differences[0]["verdict"] == "different"


def test_dense_and_upcycled_folder(tmp_path):
    source = native.make(tmp_path / "native", "llama", **SQUARE)
    upcycle(source, tmp_path / "moe", experts=4, top_k=2, certificate=False)
    certificate = certify(source, tmp_path / "moe")
    assert_verified(certificate)
    assert certificate.operation == "upcycle"
    verdicts = {item["field"]: item["verdict"] for item in certificate.config_differences}
    assert verdicts["num_experts"] == "derived" and "different" not in verdicts.values()
    assert certify(tmp_path / "moe", source).operation == "densify"


def test_too_large_a_model_is_proven_by_its_twin(tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "LARGEST_RUN", 10)
    certificate = convert(native.make(tmp_path / "native", "llama"), tmp_path / "moeba").certificate
    assert certificate.verdict == "verified"
    assert [check.on for check in certificate.checks if check.status == "unverified"] == ["checkpoint"]


# Parts beyond the variants'.
PARTS = {
    "relative": dict(position_embedding_type="relative"),
    "alibi": dict(position_embedding_type="alibi", embedding_norm=True, clip_qkv=0.5, lm_head_bias=True),
    "waves": dict(position_embedding_type="sinusoidal", position_offset=2, logits_scaling=3.0, embedding_size=20),
    "latent": dict(attention_type="latent", num_key_value_heads=4, qk_rope_head_dim=4, kv_lora_rank=6),
    "sinks": dict(
        attention_sink_layer_types=["full_attention"], attention_output_gate="sigmoid",
        attention_value_multiplier=0.7, rotary_layers=[True, False], scale_attn_by_inverse_layer_idx=True,
    ),
}  # fmt: skip
MODELS = {
    **{name: {} for name in VARIANTS},
    "dense": dict(rope_parameters={
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16,
    }),
    "learned_mlp": dict(num_key_value_heads=4, num_attention_heads=4),
    "capped": dict(logit_scale=0.5, embedding_multiplier=3.0),
}  # fmt: skip


def test_every_fault_is_about_some_model():
    """Of the ones here, or of a family, whose own tests have the certificate catch all that apply."""
    configs = [MoebaConfig(**{**SIZES, **VARIANTS[name], **fields}) for name, fields in MODELS.items()]
    configs += [MoebaConfig(**{**SIZES, **fields}) for fields in PARTS.values()]
    configs += [
        family.to_moeba(native.draw(name, seed)) for name, family in FAMILIES.items() for seed in range(3)
    ]
    idle = [fault.name for fault in FAULTS if not any(fault.applies(config) for config in configs)]
    assert not idle, f"no config here has {', '.join(idle)}: give MODELS or PARTS one in which its field acts"
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("variant", [*MODELS, *PARTS])
def test_every_fault_is_caught(variant):
    model = (
        tiny_model(variant, **MODELS[variant]) if variant in MODELS else tiny_model("dense", **PARTS[variant])
    )
    for module in [model, model.model]:
        module.set_attn_implementation("eager")
    battery = build_battery(model.config, 64)
    names = [(name, name) for name, _ in model.named_modules()]
    run = Run(model, model, battery, EXACT, modules=names)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    controls = []
    for control in plant(run, equal_experts=False):
        controls.append(control)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), control
    assert {fault.name for fault in FAULTS if fault.applies(model.config)} <= {
        control.fault for control in controls
    }
    assert not [control for control in controls if not control.caught]
    assert not [found for kind in KINDS if (found := kind.notice(run)) is not None and found[0]]


def test_model_that_amplifies_rounding(tmp_path):
    """GPT-2's fused products are summed in another order; without a scale, its attention makes much of that."""
    source = native.make(tmp_path / "native", "gpt2", seed=6, scale_attn_weights=False)
    assert_verified(convert(source, tmp_path / "moeba").certificate)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("seed", range(6))
def test_twin_keeps_the_parts(model_type, seed):
    config = FAMILIES[model_type].to_moeba(draw(model_type, seed))
    small = shrink(config)
    for name in (
        "block_order",
        "norm_type",
        "qk_norm",
        "attention_bias",
        "hidden_act",
        "tie_word_embeddings",
        "norm_topk_prob",
    ):
        assert getattr(small, name) == getattr(config, name)
    assert set(zip(small.layer_types, small.mlp_layer_types, strict=True)) == set(
        zip(config.layer_types, config.mlp_layer_types, strict=True)
    )
    ours, theirs = (layer_view(c, 0) for c in (small, config))
    assert (ours.num_key_value_heads == ours.num_attention_heads) == (
        theirs.num_key_value_heads == theirs.num_attention_heads
    )
    assert shrink(small).num_params() <= small.num_params()


def test_twin_of_latent_heads_that_rotate_whole():
    """Long rope has a factor for each pair of entries that rotate."""
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16,
        "short_factor": [1.0 + i for i in range(16)], "long_factor": [2.0 + i for i in range(16)],
    }  # fmt: skip
    whole = {"head_dim": 32, "qk_rope_head_dim": 32, "rope_parameters": rope}
    small = shrink(MoebaConfig(**{**SIZES, **PARTS["latent"], **whole}))
    assert small.qk_rope_head_dim == small.head_dim == 16
    assert MoebaForCausalLM(small).num_parameters() == small.num_params()

"""What the certificate sees beyond float32 logits: positions from the mask, roundings, training, what is no number."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from typing import Any

import native
import pytest
import torch
from native import build, draw, save
from support import tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from moeba import MoebaForCausalLM, certify, convert
from moeba.conversion import FAMILIES, CertificateError
from moeba.conversion.certificate.battery import build_battery
from moeba.conversion.certificate.faint import epsilons
from moeba.conversion.certificate.half_precision import HalfComparison, Order, compare_halves
from moeba.conversion.certificate.measures import share
from moeba.conversion.certificate.outputs import logits
from moeba.conversion.certificate.proof import RUN_CHECKS
from moeba.conversion.certificate.run import EXACT, Run, first_divergence, rounding_noise
from moeba.conversion.certificate.texts import far_positions
from moeba.conversion.certificate.training import training_pass
from moeba.conversion.certificate.twin import convert_twin, half_twins, shrink, shrink_for
from moeba.conversion.config_rows import Fixed, Pair
from moeba.modeling.modeling_moeba import MoebaModel


def failed(certificate) -> set[str]:
    return {check.name for check in certificate.checks if check.status == "failed"}


@pytest.fixture
def unplanted(monkeypatch) -> None:
    """What fails by its checks needs no planted faults, which take most of the time."""
    monkeypatch.setattr("moeba.conversion.certificate.proof.plant", lambda *_: ())


def refused(tmp_path, model_type: str, **fields: Any):
    """The certificate of a conversion that must not pass."""
    source = native.make(tmp_path / "native", model_type, **fields)
    with pytest.raises(CertificateError) as caught:
        convert(source, tmp_path / "moeba")
    assert not (tmp_path / "moeba").exists()
    return caught.value.certificate


def with_rows(monkeypatch, model_type: str, *rows: Any) -> None:
    """The family with some of our fields said by other rows."""
    family = FAMILIES[model_type]
    names = {row.our_name for row in rows}
    kept = [row for row in family.config_rows if getattr(row, "our_name", None) not in names]
    monkeypatch.setitem(FAMILIES, model_type, replace(family, config_rows=(*kept, *rows)))


# --- positions ---


def test_positions_that_are_not_taken_from_the_mask(tmp_path, unplanted, monkeypatch):
    """Equal wherever positions are given, and in batches without padding."""
    whole = MoebaModel.forward

    def deaf(self, *args, **kwargs):
        if kwargs.get("position_ids") is None and kwargs.get("attention_mask") is not None:
            ids = kwargs.get("input_ids")
            cached = kwargs.get("past_key_values") or kwargs.get("cache")
            start = cached.get_seq_length() if cached is not None else 0
            if ids is not None:
                kwargs["position_ids"] = (start + torch.arange(ids.shape[1])).expand(ids.shape)
        return whole(self, *args, **kwargs)

    deaf.__signature__ = __import__("inspect").signature(whole)
    monkeypatch.setattr(MoebaModel, "forward", deaf)
    assert "padded batch without positions" in failed(refused(tmp_path, "opt"))


def test_a_turn_of_rope_behind_what_is_run():
    """Factors for texts longer than any that is run here."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 512}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = tiny_model("dense", max_position_embeddings=1024, rope_parameters={**rope, **factors})
    other = tiny_model(
        "dense", max_position_embeddings=1024, rope_parameters={**rope, **factors, "long_factor": [3.0] * 4}
    )
    battery = build_battery(model.config, 256)
    assert battery.longest.shape[1] == 256
    run = Run(model, other, battery, EXACT)
    assert logits(run).status == "verified"
    assert [check.status for check in far_positions(run)] == ["failed"]
    assert [check.status for check in far_positions(run.with_models(model, model))] == ["verified"]


@pytest.mark.parametrize(
    "changed", [{"beta_fast": 16.0}, {"beta_slow": 2.0}, {"truncate": False}, {"factor": 8.0}]
)
def test_a_twin_turns_by_every_setting_of_yarn(changed):
    """Between bounds that lie within its few channels, as they do in a large model."""
    from moeba.modeling.positions import build_rotary

    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
    turned = [
        build_rotary(
            shrink(tiny_config(head_dim=128, max_position_embeddings=131072, rope_parameters=settings))
        ).inv_freq
        for settings in (rope, {**rope, **changed})
    ]
    assert (turned[0] - turned[1]).abs().max() > 1e-5


# --- epsilons ---


@pytest.mark.parametrize("fields", [dict(norm_eps=1e-12), dict(norm_topk_eps=1e-20)])
def test_an_epsilon_that_no_logit_tells_from_another(fields):
    shape = dict(**fields, norm_topk_prob=True)
    model, other = (
        tiny_model("shared_sigmoid", **{**shape, **{name: factor * value for name, value in fields.items()}})
        for factor in (1, 1e3)
    )
    battery = build_battery(model.config, 64)
    names = [(name, name) for name, _ in model.named_modules()]
    run = Run(model, other, battery, EXACT, modules=names)
    assert logits(run).status == "verified"
    assert [check.status for check in epsilons(run.with_models(model, model))] == ["verified"]
    assert [check.status for check in epsilons(run)] == ["failed"]


# --- half precision ---

ROUNDINGS = {
    "factor on the embeddings": ("gemma2", Fixed("round_embedding_multiplier", False), "embeddings"),
    "rotation": ("olmo2", Fixed("rotary_precision", "model"), "layer 0"),
    "order of a norm": ("llama", Fixed("norm_type", "rmsnorm_float32"), "layer 0"),
    "product of the router": ("deepseek_v3", Fixed("router_matmul_dtype", "model"), "router 0"),
    "weights of the experts": ("mixtral", Fixed("router_weight_dtype", "model"), "layer 0"),
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_a_rounding_elsewhere_is_caught(tmp_path, unplanted, monkeypatch, name):
    """Nothing of it shows in float32, and the bytes come back."""
    model_type, row, where = ROUNDINGS[name]
    with_rows(monkeypatch, model_type, row)
    # One expert a token would weigh 1 in any precision.
    fields = {"num_experts_per_tok": 2} if model_type == "mixtral" else {}
    certificate = refused(tmp_path, model_type, **fields)
    assert certificate.keys["round_trip"] == "bitwise"
    found = failed(certificate)
    assert found and all(name.startswith("parts ") for name in found), certificate.lines()
    assert any(where in check.detail for check in certificate.checks if check.status == "failed")


def halves(tmp_path, model_type: str, dtype: torch.dtype = torch.bfloat16):
    family = FAMILIES[model_type]
    twins = convert_twin(family.to_moeba(draw(model_type, 0)), family, tmp_path)
    return half_twins(*twins, tmp_path, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_of_one_model_agree_in_all_bits(tmp_path, dtype):
    one, other = halves(tmp_path, "qwen3", dtype)
    ids = build_battery(other.config, 32).longest
    checks, controls = compare_halves(one, other, ids, Order(), "randomised twin")
    assert [check.figures["different"] for check in checks] == [0.0]
    assert controls and all(control.caught for control in controls)


def test_what_sums_in_another_order_is_within_its_own_rounding(tmp_path):
    """BLOOM's stock model adds the distances inside a fused product: half of its values round otherwise."""
    one, other = halves(tmp_path, "bloom")
    ids = build_battery(other.config, 32).longest
    fused = Order(FAMILIES["bloom"].reordered, FAMILIES["bloom"].rounds_otherwise)
    for order in (Order(), replace(fused, rounds_otherwise=False)):
        assert HalfComparison(one, other, ids, order, "").run().status == "failed"
    assert HalfComparison(one, other, ids, fused, "").run().status == "verified"
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(1.2)
    assert HalfComparison(one, other, ids, fused, "").run().status == "failed"


def test_a_checkpoint_in_half_precision_is_compared_in_it(tmp_path):
    source = save(build(draw("llama", 0), dtype=torch.bfloat16), tmp_path / "native")
    checks = convert(source, tmp_path / "moeba").certificate.checks
    assert [(c.on, c.status) for c in checks if c.name == "parts in bfloat16"] == [
        ("randomised twin", "verified"),
        ("checkpoint", "verified"),
    ]
    shutil.copytree(tmp_path / "moeba", tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "norm_type": "rmsnorm_float32"}))
    found = [c for c in certify(tmp_path / "moeba", tmp_path / "other").checks if c.status == "failed"]
    assert ("parts in bfloat16", "checkpoint") in {(check.name, check.on) for check in found}


@pytest.mark.parametrize("model_type", ["gemma", "gemma2"])
def test_the_factor_on_a_twins_embeddings_is_rounded(model_type):
    """One that bfloat16 holds exactly would say nothing."""
    for width in (16, 64, 256):
        config = FAMILIES[model_type].to_moeba(draw(model_type, 0))
        heads = config.num_attention_heads
        values = config.to_dict() | {
            "hidden_size": width,
            "embedding_size": width,
            "head_dim": width // heads,
        }
        values["embedding_multiplier"] = width**0.5
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
        factor = shrink_for(type(config).from_dict(values), FAMILIES[model_type]).embedding_multiplier
        assert torch.tensor(factor, dtype=torch.bfloat16).item() != factor


# --- training ---

DROPOUT = "attention_dropout"
TRAINED = {
    "halved there and doubled back": Pair(
        DROPOUT, DROPOUT, ours_from=lambda rate: rate / 2, theirs_from=lambda rate: rate * 2
    ),
    "lost": Fixed(DROPOUT, 0.0, (DROPOUT,)),
}


@pytest.mark.parametrize("name", TRAINED)
def test_another_dropout_is_caught(tmp_path, unplanted, monkeypatch, name):
    with_rows(monkeypatch, "llama", TRAINED[name])
    certificate = refused(tmp_path, "llama", attention_dropout=0.2)
    seen = {"training", "training fields", "loss in training"}
    assert {"training"} <= failed(certificate) <= seen, certificate.lines()


def test_a_dropout_that_only_the_file_knows_is_caught(tmp_path, unplanted, monkeypatch):
    """Of a model that is too large to be run whole."""
    monkeypatch.setattr("moeba.conversion.certificate.proof.LARGEST_RUN", 10)
    with_rows(monkeypatch, "llama", TRAINED["lost"])
    certificate = refused(tmp_path, "llama", attention_dropout=0.2)
    assert failed(certificate) == {"training fields"}
    assert any("attention_dropout 0.2 → 0.0" in line for line in certificate.lines())


def test_training_leaves_the_models_and_other_draws_as_they_were():
    model = tiny_model("dense", attention_dropout=0.5).eval()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    (check,) = training_pass(Run(model, model, build_battery(model.config, 24), EXACT))
    assert torch.equal(torch.rand(1), expected) and not model.training
    assert (check.status, check.figures) == ("verified", {"relative_to_spread": 0.0})


def test_a_family_that_drops_out_otherwise_says_so(tmp_path):
    source = native.make(tmp_path / "native", "falcon", attention_dropout=0.2, hidden_dropout=0.2)
    certificate = convert(source, tmp_path / "moeba").certificate
    told = [check for check in certificate.checks if check.name == "training"]
    assert certificate.verdict == "verified"
    assert {check.status for check in told} == {"unverified"} and "ALiBi" in told[0].detail


# --- what is no number ---


def test_what_is_no_number_is_infinitely_far_away():
    nan, inf, zeros = torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf]), torch.zeros(3)
    for a, b in ((nan, nan), (inf, inf), (torch.ones(2), nan), (nan, torch.ones(2))):
        assert share(a, b) == math.inf
    assert share(zeros, zeros) == 0.0 and share(zeros, zeros + 0.5) == 0.5
    assert share(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0])) == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize("side", [0, 1])
def test_logits_that_are_not_finite_fail(side):
    """A comparison with NaN is neither smaller nor larger."""
    pair = [tiny_model("dense"), tiny_model("dense")]
    with torch.no_grad():
        pair[side].model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    battery = build_battery(pair[0].config, 24)
    names = [("model.embed_tokens", "model.embed_tokens"), ("model.norm", "model.norm")]
    run = Run(*pair, battery, EXACT, modules=names)
    checks = {found.name: found for check in RUN_CHECKS for found in check(run)}
    for name, check in checks.items():
        if name not in ("router choices", "epsilons") and not name.startswith("greedy"):
            assert check.status == "failed", check
    told = f"the {('source', 'target')[side]}'s logits are not finite"
    assert told in checks["logits, eager attention"].detail
    assert rounding_noise(pair[::-1] if side else pair, battery) == 0.0
    assert first_divergence(run) == "model.norm"


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_logits_without_a_spread_have_a_verdict(tmp_path, model_type):
    """Of a checkpoint whose head says nothing."""
    model = build(draw(model_type, 0))
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        model.get_input_embeddings().weight.zero_()
    certificate = convert(save(model, tmp_path / "native"), tmp_path / "moeba").certificate
    assert certificate.verdict == "verified"
    told = [
        check.detail
        for check in certificate.checks
        if check.name.startswith("logits") and check.on == "checkpoint"
    ]
    assert told and all("no spread: compared in absolute terms" in detail for detail in told)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    assert isinstance(MoebaForCausalLM.from_pretrained(tmp_path / "moeba"), MoebaForCausalLM)
    assert share(other(torch.tensor([[1, 2]])).logits, torch.ones(1, 2, other.config.vocab_size)) == 1.0


def test_a_mixture_that_shows_its_router_logits(tmp_path):
    """Stock cannot generate a batch then: its balance loss takes the whole mask for that of one step."""
    source = native.make(tmp_path / "native", "mixtral", output_router_logits=True)
    checks = convert(source, tmp_path / "moeba").certificate.checks
    assert {c.status for c in checks if c.name == "greedy tokens of a batch"} == {"verified"}

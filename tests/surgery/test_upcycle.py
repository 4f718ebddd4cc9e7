"""Upcycling: the same function with experts, proven, exported again, and refused where it cannot be."""

from __future__ import annotations

import argparse
import difflib
import json
import shutil
from pathlib import Path

import native
import pytest
import torch
from native import draw, load, read_all, snapshot
from safetensors.torch import load_file, save_file
from support import random_ids
from transformers import AutoModelForCausalLM

from moeba import MoebaConfig, MoebaForCausalLM, MoebaTokenizer, convert, export, upcycle
from moeba.conversion.checkpoint import Checkpoint
from moeba.surgery.layers import parse_layers
from moeba.surgery.routers.router_init import calibrated_rows, degeneracy, random_rows, spherical_kmeans
from moeba.surgery.running.texts import Texts, observe_feed_forwards

TEXT = Path(argparse.__file__).read_text(encoding="utf-8")
OTHER_TEXT = Path(difflib.__file__).read_text(encoding="utf-8")
# Plain shapes, which Mixtral and Qwen3-MoE can hold; three layers.
PLAIN = dict(
    hidden_size=32, intermediate_size=20, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3,
    attention_bias=False, mlp_bias=False, hidden_act="silu", tie_word_embeddings=False,
)  # fmt: skip
FULL = dict(use_sliding_window=False, sliding_window=None, layer_types=None)
ROPE = dict(rope_parameters={"rope_type": "default", "rope_theta": 500.0}, head_dim=8)
FIELDS = {
    "gpt2": dict(n_layer=3, n_embd=24, n_head=3),
    "llama": {**PLAIN, **ROPE},
    "qwen2": dict(num_hidden_layers=3, layer_types=["full_attention", "sliding_attention", "full_attention"],
                  use_sliding_window=True, sliding_window=6),
    "qwen3": {**{k: v for k, v in PLAIN.items() if k != "mlp_bias"}, **ROPE, **FULL},
}  # fmt: skip
LAYERS = {"all": [0, 1, 2], "every:2": [1], "last:1": [2], "first:2": [0, 1], "0,2": [0, 2]}


def dense(folder: Path, model_type: str = "llama", **fields) -> Path:
    return native.make(folder, model_type, **{**FIELDS[model_type], **fields})


def logits(folder: Path, model_class=MoebaForCausalLM) -> torch.Tensor:
    model = load(model_class, folder)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(random_ids(2, 40, model.config.vocab_size)).logits


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Sums over several experts: within a few units in the last place of the logits' spread."""
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.std(), (ours - theirs).abs().max() / theirs.std()


@pytest.mark.parametrize(
    "layers, router_init",
    [
        ("all", "normal"),
        ("all", "zeros"),
        ("every:2", "zeros"),
        ("last:1", "normal"),
        ("first:2", "zeros"),
        ("0,2", "normal"),
    ],
)
@pytest.mark.parametrize("model_type", FIELDS)
def test_function_is_kept(tmp_path, model_type, layers, router_init):
    source = dense(tmp_path / "native", model_type)
    upcycle(
        source,
        tmp_path / "moe",
        experts=5,
        top_k=2,
        layers=layers,
        router_init=router_init,
        certificate=False,
    )
    config = MoebaConfig.from_pretrained(tmp_path / "moe")
    assert config.sparse_layers == LAYERS[layers]
    assert (config.num_experts, config.num_experts_per_tok) == (5, 2)
    assert_close(logits(tmp_path / "moe"), logits(source, AutoModelForCausalLM))


@pytest.mark.parametrize("experts, top_k", [(1, 1), (2, 1), (3, 3), (13, 2)])
def test_numbers_of_experts(tmp_path, experts, top_k):
    source = dense(tmp_path / "native")
    proof = upcycle(
        source, tmp_path / "moe", experts=experts, top_k=top_k, certificate=experts in (1, 3)
    ).certificate
    assert proof is None or proof.verdict == "verified"
    assert_close(logits(tmp_path / "moe"), logits(source, AutoModelForCausalLM))


@pytest.mark.parametrize("model_type", FIELDS)
def test_certificate(tmp_path, model_type):
    source = dense(tmp_path / "native", model_type)
    certificate = upcycle(source, tmp_path / "moe", experts=12, top_k=2, layers="0,2").certificate
    assert (certificate.verdict, certificate.operation) == ("verified", "upcycle")
    assert all(control.caught for control in certificate.negative_controls)
    assert {
        "channels of the experts' outputs rolled by one",
        "renormalisation of the chosen scores flipped",
    } <= {control.fault for control in certificate.negative_controls}
    (experts,) = [check for check in certificate.checks if check.name == "new tensors"]
    assert experts.status == "verified"
    # For each of two layers: experts and router, with biases, or with the empty shared expert of Qwen2-MoE.
    assert experts.figures == {"tensors": 2 * {"gpt2": 5, "llama": 7, "qwen2": 7, "qwen3": 3}[model_type]}
    exact = {
        check.figures["relative_to_spread"] for check in certificate.checks if check.name.startswith("logits")
    }
    assert max(exact) <= 2e-5
    assert certificate.keys["changed"] == []
    assert json.loads((tmp_path / "moe" / "parity.json").read_text())["verdict"] == "verified"


def test_experts_are_copies_and_the_rest_is_untouched(tmp_path):
    source = dense(tmp_path / "native")
    convert(source, tmp_path / "moeba", certificate=False)
    upcycle(source, tmp_path / "moe", experts=3, top_k=2, layers="last:1", to="auto", certificate=False)
    before, after = read_all(tmp_path / "moeba"), read_all(tmp_path / "moe")
    mlp = "model.layers.2.mlp."
    for name in sorted(before.keys() & after.keys()):
        assert torch.equal(before[name], after[name])
    assert before.keys() - after.keys() == {f"{mlp}{part}_proj.weight" for part in ("gate", "up", "down")}
    empty = {name for name in after if "shared_expert" in name}
    assert len(empty) == 4 and not any(after[name].any() for name in empty)
    assert after.keys() - before.keys() - empty == {
        f"{mlp}gate.weight",
        f"{mlp}experts.gate_up_proj",
        f"{mlp}experts.down_proj",
    }
    fused = torch.cat([before[f"{mlp}gate_proj.weight"], before[f"{mlp}up_proj.weight"]])
    assert all(torch.equal(expert, fused) for expert in after[f"{mlp}experts.gate_up_proj"])
    assert all(
        torch.equal(expert, before[f"{mlp}down_proj.weight"]) for expert in after[f"{mlp}experts.down_proj"]
    )


def test_moeba_sources_and_native_ones_give_the_same(tmp_path):
    source = dense(tmp_path / "native", "qwen3")
    convert(source, tmp_path / "moeba", certificate=False)
    for name in ("native", "moeba"):
        upcycle(tmp_path / name, tmp_path / f"moe_{name}", experts=4, top_k=2, certificate=False)
    first, second = (
        (tmp_path / f"moe_{name}" / "model.safetensors").read_bytes() for name in ("native", "moeba")
    )
    assert first == second


@pytest.mark.parametrize(
    "model_type, to, found, fields",
    [
        ("llama", "mixtral", "mixtral", {"layers": "all"}),
        ("llama", "auto", "mixtral", {"layers": "all"}),
        ("llama", "auto", "qwen2_moe", {}),
        ("qwen3", "qwen3_moe", "qwen3_moe", {}),
        ("qwen3", "auto", "qwen3_moe", {}),
        ("qwen3", "auto", "qwen3_moe", {"layers": "every:2"}),
    ],
)
def test_export_and_stock_reload(tmp_path, model_type, to, found, fields):
    source = dense(tmp_path / "native", model_type)
    upcycle(source, tmp_path / "moe", experts=12, top_k=2, certificate=False, max_shard_size="16KB", **fields)
    proof = export(tmp_path / "moe", tmp_path / "out", to=to, certificate=to == "auto").certificate
    assert proof is None or proof.verdict == "verified"
    stock = load(AutoModelForCausalLM, tmp_path / "out")
    assert stock.config.model_type == found
    assert (
        type(stock).__name__
        == {
            "mixtral": "MixtralForCausalLM",
            "qwen3_moe": "Qwen3MoeForCausalLM",
            "qwen2_moe": "Qwen2MoeForCausalLM",
        }[found]
    )
    stored = set(Checkpoint(tmp_path / "out").tensors)
    block = "block_sparse_moe.experts.11.w1" if found == "mixtral" else "mlp.experts.11.gate_proj"
    assert f"model.layers.1.{block}.weight" in stored
    ours = logits(tmp_path / "moe")
    assert torch.equal(logits(tmp_path / "out", AutoModelForCausalLM), ours)
    assert_close(ours, logits(source, AutoModelForCausalLM))


@pytest.mark.parametrize("model_type, reason", [("gpt2", "layernorm")])
def test_what_no_native_mixture_can_hold_is_named(tmp_path, model_type, reason):
    upcycle(dense(tmp_path / "native", model_type), tmp_path / "moe", experts=4, top_k=2, certificate=False)
    with pytest.raises(ValueError, match=f"no native family can hold this model exactly.*{reason}"):
        export(tmp_path / "moe", tmp_path / "out")


def test_refusals(tmp_path):
    source = dense(tmp_path / "native")
    before = snapshot(source)
    upcycle(source, tmp_path / "moe", experts=4, top_k=2, layers="all", certificate=False)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "short").write_text("a word")
    (tmp_path / "empty").write_text("")
    cases = [
        (tmp_path / "moe", {}, r"already has experts in layers \[0, 1, 2\]"),
        (source, dict(top_k=5), "top_k=5 must be between 1 and experts=4"),
        (source, dict(top_k=0), "top_k=0 must be between 1"),
        (source, dict(layers="some"), "layers='some': say all, every:2"),
        (source, dict(layers="0,3"), r"\[3\] do not exist, the model has layers 0 to 2"),
        (source, dict(layers="every:0"), "layers='every:0'"),
        (source, dict(layers="every:4"), "no layer is chosen"),
        (source, dict(layers=""), "layers=''"),
        (
            source,
            dict(router_init="random"),
            "router_init='random': choose one of normal, zeros, calibration",
        ),
        (source, dict(router_init="calibration"), "needs calibration text files"),
        (source, dict(router_init="calibration", calibration=[tmp_path / "none"]), "calibration file .*none"),
        (
            source,
            dict(router_init="calibration", calibration=[tmp_path / "binary"]),
            "calibration file .*binary",
        ),
        (source, dict(router_init="calibration", calibration=[tmp_path / "short"]), "needs the tokenizer of"),
        (
            source,
            dict(calibration=[tmp_path / "short"]),
            "calibration files are given, but router_init='normal'",
        ),
        (tmp_path / "nowhere", {}, "neither a folder here nor a Hub id"),
    ]
    for folder, options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            upcycle(folder, tmp_path / "out", **{"experts": 4, "top_k": 2, **options})
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="inside the source"):
        upcycle(source, source / "out", experts=4, top_k=2)
    assert snapshot(source) == before


@pytest.fixture(scope="module")
def tokenizer():
    return MoebaTokenizer.train([TEXT, OTHER_TEXT], vocab_size=400)


@pytest.fixture
def calibrated(tmp_path, tokenizer):
    """A dense model with a tokenizer, and a text to calibrate on."""
    source = dense(tmp_path / "native", "llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    tokenizer.save_pretrained(source)
    (tmp_path / "text").write_text(TEXT[:20_000])
    return source


def grow(source: Path, out: Path, **options):
    settings = dict(
        experts=6,
        top_k=2,
        layers="all",
        router_init="calibration",
        calibration=[source.parent / "text"],
        certificate=False,
    )
    return upcycle(source, out, **{**settings, **options})


def router_rows(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in read_all(folder).items() if name.endswith("mlp.gate.weight")}


def test_calibrated_rows_reproduce_by_seed(calibrated, tmp_path):
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        grow(calibrated, tmp_path / name, seed=seed)
    first, again, other = (router_rows(tmp_path / name) for name in ("first", "again", "other"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    rows = list(first.values())
    assert len(rows) == 3
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[1], rows[2])
    assert all(degeneracy(tensor) < 0.95 for tensor in rows)


def test_calibrated_routing_uses_every_expert(calibrated, tmp_path, tokenizer):
    result = grow(calibrated, tmp_path / "moe", certificate=True)
    assert result.certificate.verdict == "verified"
    assert len(result.plan.notes) == 3 and all("largest_cosine" in note for note in result.plan.notes)
    model = load(MoebaForCausalLM, tmp_path / "moe")
    ids = torch.tensor([tokenizer(OTHER_TEXT[:4000])["input_ids"][:500]])
    with torch.no_grad():
        routers = model(ids, output_router_logits=True).router_logits
    for scores in routers:
        loads = torch.bincount(scores.topk(2)[1].flatten(), minlength=6) / (2 * len(scores))
        # On a text it has not seen: even would be 1/6 each.
        assert loads.min() > 0.1 / 6 and loads.max() < 2.5 / 6, loads
        assert 0.3 < scores.std() < 3


def test_what_all_tokens_share_favours_no_expert(calibrated, tokenizer):
    model = MoebaForCausalLM.from_pretrained(calibrated).eval()
    ids, labels = Texts(("text",), (TEXT[:20_000],)).windows(tokenizer, longest=512)
    rows, reports = calibrated_rows(model, ids, labels, [0, 2], 6, 2, seed=0)
    assert list(reports) == [0, 2] and all(report["smallest_load"] > 0.1 for report in reports.values())
    inputs: dict[int, torch.Tensor] = {}
    observe_feed_forwards(model, ids, [0, 2], inputs.__setitem__)
    for layer, vectors in inputs.items():
        assert 24 <= len(vectors) <= 4096
        assert (rows[layer] @ vectors.mean(dim=0)).abs().max() < 1e-4


def test_too_little_text(calibrated, tmp_path):
    for text, message in (
        ("a b", "calibration gave [23] tokens for 6 experts: give at least 24"),
        ("", "text is empty"),
    ):
        (tmp_path / "text").write_text(text)
        with pytest.raises(ValueError, match=message):
            grow(calibrated, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_record_of_what_was_done(calibrated, tmp_path):
    grow(calibrated, tmp_path / "moe", seed=3, layers="0,2")
    record = json.loads((tmp_path / "moe" / "moeba_provenance.json").read_text())
    assert record["operation"] == "upcycle"
    recipe = record["recipe"]
    assert (recipe["experts"], recipe["top_k"], recipe["layers"], recipe["seed"]) == (6, 2, "0,2", 3)
    assert recipe["sparse_layers"] == [0, 2] and len(recipe["texts"]["text"]) == 64
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "moe" / name).read_bytes() == (calibrated / name).read_bytes()


@pytest.mark.parametrize("router_init", ["normal", "calibration"])
@pytest.mark.parametrize("converted", [False, True])
def test_dry_run_reads_no_tensor(calibrated, tmp_path, monkeypatch, router_init, converted):
    source = calibrated
    if converted:
        convert(calibrated, tmp_path / "moeba", certificate=False)
        source = tmp_path / "moeba"
    else:  # a tied head that is stored as well: it would be compared
        tensors = load_file(source / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a tensor was read"))
    result = grow(source, tmp_path / "out", router_init=router_init, dry_run=True,
                  calibration=[tmp_path / "text"] if router_init == "calibration" else [])  # fmt: skip
    assert result.report is None and result.certificate is None
    assert not (tmp_path / "out").exists()
    lines = "\n".join(result.plan.describe())
    assert "model.layers.2.mlp.experts.down_proj [6, 32, 20] <- model.layers.2.mlp.down_proj.weight" in lines
    assert "model.layers.2.mlp.gate.weight [6, 32] <- new" in lines
    assert result.plan.summary()["target_model_type"] == "moeba"


def test_stale_tied_head_is_refused(tmp_path):
    source = dense(tmp_path / "native", tie_word_embeddings=True)
    tensors = load_file(source / "model.safetensors")
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, source / "model.safetensors"
    )
    with pytest.raises(ValueError, match="tie_word_embeddings=true, but lm_head.weight differs"):
        upcycle(source, tmp_path / "moe", experts=4, top_k=2)
    assert not (tmp_path / "moe").exists()


def test_same_seed_same_bytes(tmp_path):
    source = dense(tmp_path / "native")
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        upcycle(
            source,
            tmp_path / name / "moe",
            experts=4,
            top_k=2,
            layers="all",
            seed=seed,
            certificate=name != "other",
        )
    first, again, other = (tmp_path / name / "moe" for name in ("first", "again", "other"))
    assert snapshot(first) == snapshot(again)
    changed = [
        name for name, tensor in read_all(first).items() if not torch.equal(tensor, read_all(other)[name])
    ]
    assert changed == [f"model.layers.{layer}.mlp.gate.weight" for layer in range(3)]


def test_sharded_source_and_bf16(tmp_path):
    config = draw("llama", 0)
    config = type(config)(**{**native.plain(config), **FIELDS["llama"]})
    for dtype in (torch.float32, torch.bfloat16):
        model = native.build(config, dtype=dtype)
        source = native.save(model, tmp_path / f"sharded {dtype}", shards=True)
        single = native.save(model, tmp_path / f"single {dtype}")
        for name in (source, single):
            upcycle(name, name.with_name(f"{name.name} moe"), experts=4, top_k=2, certificate=False)
        first, second = (read_all(name.with_name(f"{name.name} moe")) for name in (source, single))
        native.same_tensors(first, second)
        assert {tensor.dtype for tensor in first.values()} == {dtype}
    shutil.rmtree(tmp_path / f"single {dtype} moe")
    assert (
        upcycle(single, tmp_path / f"single {dtype} moe", experts=4, top_k=2).certificate.verdict
        == "verified"
    )


def test_words_for_layers():
    assert parse_layers("all", 3) == [0, 1, 2]
    assert parse_layers("every:2", 5) == [1, 3]
    assert parse_layers("last:9", 3) == [0, 1, 2]
    assert parse_layers("first:1", 3) == [0]
    assert parse_layers("2,0", 3) == [0, 2]
    for wrong in (
        "every", "every:x", "last:-1", "first:0", "-1", "1.5", "all:2", "0,0", "2,0,2", "first:99999999999",
        "from:99999999999",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"layers='{wrong}'"):
            parse_layers(wrong, 3)


def test_random_rows():
    a, b = (random_rows("normal", (4, 8), 0.02, 0, layer) for layer in (0, 1))
    assert not torch.equal(a, b) and torch.equal(a, random_rows("normal", (4, 8), 0.02, 0, 0))
    assert random_rows("zeros", (4, 8), 0.02, 0, 0).count_nonzero() == 0


def test_clusters_of_clear_directions_are_found():
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(5, 16, generator=generator), dim=-1)
    vectors = (centres.repeat(40, 1) + 0.05 * torch.randn(200, 16, generator=generator)) * 7
    found = spherical_kmeans(vectors, 5, seed=1)
    assert ((found @ centres.T).max(dim=0)[0] > 0.98).all()
    assert degeneracy(torch.ones(3, 4)) == pytest.approx(1.0)

"""Splitting: no neuron lost or doubled, exact where all parts are visited, better than chance where text says how."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import native
import pytest
import torch
from native import load, read_all, snapshot
from support import random_ids
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from moeba import MoebaConfig, MoebaForCausalLM, MoebaTokenizer, convert, split
from moeba.conversion.checkpoint import Checkpoint
from moeba.surgery.experts.partitions import assign_equally, equal_clusters

TEXT = Path(argparse.__file__).read_text(encoding="utf-8")
PLAIN = dict(
    hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
    attention_bias=False, mlp_bias=False, hidden_act="silu", tie_word_embeddings=False, head_dim=8,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0}, max_position_embeddings=256,
)  # fmt: skip
LAYER = "model.layers.{}.mlp.{}"
GROUPS = 4  # of the structured model


@pytest.fixture(scope="module")
def tokenizer():
    return MoebaTokenizer.train([TEXT], vocab_size=300)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text(TEXT[:20_000])
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory, tokenizer):
    """A random Llama with a tokenizer."""
    folder = native.make(
        tmp_path_factory.mktemp("source") / "llama", "llama", **PLAIN, vocab_size=len(tokenizer)
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def structured(tmp_path_factory, tokenizer):
    """A ReLU model made of groups: a token is of one, and only the neurons of that one fire for it.

    Tokens carry their group in the first channels, which alone the gates read and no layer changes.
    """
    config = LlamaConfig(**{**PLAIN, "hidden_act": "relu"}, vocab_size=len(tokenizer))
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    owners = {}
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.copy_(0.3 * torch.randn(embedding.shape, generator=generator))
        embedding[:, :GROUPS] = 4 * torch.eye(GROUPS)[torch.arange(len(embedding)) % GROUPS]
        for index, layer in enumerate(model.model.layers):
            layer.self_attn.o_proj.weight[:GROUPS] = 0
            owners[index] = torch.randperm(48, generator=generator) % GROUPS
            scale = 1 + torch.rand(48, 1, generator=generator)
            layer.mlp.gate_proj.weight.zero_()
            layer.mlp.gate_proj.weight[:, :GROUPS] = scale * torch.eye(GROUPS)[owners[index]]
            layer.mlp.down_proj.weight.copy_(0.2 * torch.randn(32, 48, generator=generator))
            layer.mlp.down_proj.weight[:GROUPS] = 0
        model.lm_head.weight.copy_(torch.randn(model.lm_head.weight.shape, generator=generator))
    folder = native.save(model, tmp_path_factory.mktemp("structured") / "llama")
    tokenizer.save_pretrained(folder)
    return folder, owners


def record(folder: Path) -> dict:
    return json.loads((folder / "surgery.json").read_text())


def parts_of(source: Path, folder: Path, layer: int) -> list[list[int]]:
    """The neurons of each expert, shared one last, found again in the written tensors."""
    dense, sparse = read_all(source), read_all(folder)
    up = dense[LAYER.format(layer, "up_proj.weight")]
    gate_up = sparse[LAYER.format(layer, "experts.gate_up_proj")]
    blocks = [block[len(block) // 2 :] for block in gate_up]
    shared = LAYER.format(layer, "shared_expert.up_proj.weight")
    if shared in sparse:
        blocks.append(sparse[shared])
    return [[int((up == row).all(dim=1).nonzero()) for row in block] for block in blocks]


@pytest.mark.parametrize("method", ["random", "coactivation", "clusters"])
@pytest.mark.parametrize("shared", [0, 1])
def test_no_neuron_is_lost_or_doubled(source, text, tmp_path, method, shared):
    split(source, tmp_path / "moe", experts=6, top_k=2, method=method, shared=shared, layers="all", to="mixtral"
          if not shared else "auto", calibration=[text], certificate=False)  # fmt: skip
    dense, sparse = read_all(source), read_all(tmp_path / "moe")
    for layer in range(2):
        parts = parts_of(source, tmp_path / "moe", layer)
        assert [len(part) for part in parts] == [8] * 6
        assert sorted(sum(parts, [])) == list(range(48))
        scale = record(tmp_path / "moe")["reports"]["layers"][str(layer)]["scale"]
        down = dense[LAYER.format(layer, "down_proj.weight")]
        for expert, part in enumerate(parts[: 6 - shared]):
            stored = sparse[LAYER.format(layer, "experts.down_proj")][expert]
            torch.testing.assert_close(stored, down[:, part] * scale)
        gate = dense[LAYER.format(layer, "gate_proj.weight")]
        gates = sparse[LAYER.format(layer, "experts.gate_up_proj")][0][:8]
        assert torch.equal(gates, gate[parts[0]])
    kept = {name for name in dense if ".mlp." not in name}
    assert all(torch.equal(dense[name], sparse[name]) for name in kept)


def logits(folder: Path, model_class=MoebaForCausalLM) -> torch.Tensor:
    model = load(model_class, folder)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(random_ids(2, 40, model.config.vocab_size)).logits


@pytest.mark.parametrize(
    "model_type, options, family",
    [
        ("llama", dict(experts=6, top_k=6, layers="all", to="mixtral", export=True), "mixtral"),
        ("llama", dict(experts=4, top_k=3, shared=1, layers="all", to="qwen2_moe", export=True), "qwen2_moe"),
        ("llama", dict(experts=4, top_k=2, shared=2, to="glm4_moe"), "glm4_moe"),
        ("gpt2", dict(experts=3, top_k=2, shared=1), None),
    ],
)
def test_all_parts_are_the_whole(source, tmp_path, model_type, options, family):
    if model_type != "llama":  # biases, and no gate
        source = native.make(tmp_path / "native", model_type, n_layer=3, n_embd=24, n_head=3, n_inner=36)
    result = split(source, tmp_path / "moe", **options)
    assert (result.certificate.verdict, result.gap) == ("verified", None)
    assert all(control.caught for control in result.certificate.negative_controls)
    ours = logits(tmp_path / "moe", AutoModelForCausalLM if options.get("export") else MoebaForCausalLM)
    theirs = logits(source, AutoModelForCausalLM)
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.std()
    assert record(tmp_path / "moe")["exact"] is True
    assert json.loads((tmp_path / "moe" / "moeba_provenance.json").read_text())["recipe"]["family"] == family
    assert any("no computation is saved" in note for note in result.plan.notes)


def test_loss_is_measured_and_said(source, tmp_path):
    result = split(source, tmp_path / "moe", experts=6, top_k=3, layers="all", to="mixtral")
    assert result.certificate is None
    assert result.gap["kl"] > 0.01 and result.gap["tokens"] > 1000
    assert any(note.startswith("LOSSY until it is trained") for note in result.plan.notes)
    written = record(tmp_path / "moe")
    assert written["exact"] is False and written["gap"]["kl"] == result.gap["kl"]
    assert written["recipe"]["method"] == "random" and written["recipe"]["router_init"] == "normal"
    assert len(written["recipe"]["division"]) == 64
    config = MoebaConfig.from_pretrained(tmp_path / "moe")
    assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (6, 3, 8)
    assert config.norm_topk_prob and config.sparse_layers == [0, 1]
    # 3 of 6 stand for the whole: their weights sum to 1, times 6.
    down = read_all(source)[LAYER.format(1, "down_proj.weight")]
    parts = parts_of(source, tmp_path / "moe", 1)
    stored = read_all(tmp_path / "moe")[LAYER.format(1, "experts.down_proj")]
    assert torch.equal(stored[0], down[:, parts[0]] * 6)


def test_half_precision_that_would_round_is_measured(tmp_path):
    config = LlamaConfig(**PLAIN, vocab_size=90)
    source = native.save(native.build(config, dtype=torch.bfloat16), tmp_path / "native")
    for experts, exact in ((3, False), (4, True)):
        result = split(source, tmp_path / f"{experts}", experts=experts, top_k=experts)
        assert (result.certificate is not None, result.gap is None) == (exact, exact)
    assert result.certificate.verdict == "verified"


def gap(source: Path, destination: Path, text: Path, **options) -> float:
    settings = dict(experts=GROUPS, top_k=1, layers="all", calibration=[text])
    return split(source, destination, **{**settings, **options}).gap["kl"]


@pytest.mark.parametrize("method", ["coactivation", "clusters"])
def test_groups_that_fire_together_are_found(structured, text, tmp_path, method):
    source, owners = structured
    found = gap(source, tmp_path / "found", text, method=method)
    for layer in range(2):
        parts = parts_of(source, tmp_path / "found", layer)
        assert all(len(set(owners[layer][part].tolist())) == 1 for part in parts)
    by_chance = gap(source, tmp_path / "random", text, method="random")
    # Routed rightly, the one expert of a token is all that would have fired.
    assert found < 1e-6 < 1e-2 < by_chance


@pytest.mark.parametrize("method", ["random", "coactivation"])
def test_calibrated_router_loses_less(structured, text, tmp_path, method):
    source, _ = structured
    options = dict(method=method, experts=8, top_k=3)
    by_chance = gap(source, tmp_path / "normal", text, router_init="normal", **options)
    found = gap(source, tmp_path / "calibrated", text, **options)
    assert record(tmp_path / "calibrated")["recipe"]["router_init"] == "calibration"
    assert found < 0.8 * by_chance


def test_most_active_neurons_are_shared(structured, text, tmp_path):
    """Neurons that fire for every token, loudly, belong in the shared expert."""
    source, _ = structured
    folder = tmp_path / "native"
    model = LlamaForCausalLM.from_pretrained(source)
    loud = [3, 17, 20, 21, 33, 40, 45, 47, 5, 6, 7, 8]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight[loud, :GROUPS] = 3.0
            layer.mlp.down_proj.weight[:, loud] *= 3
    native.save(model, folder)
    MoebaTokenizer.from_pretrained(source).save_pretrained(folder)
    with_shared = gap(folder, tmp_path / "shared", text, shared=1, method="coactivation")
    assert parts_of(folder, tmp_path / "shared", 0)[-1] == sorted(loud)
    assert with_shared < gap(folder, tmp_path / "none", text, top_k=2, method="coactivation")


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_trained_model(tokenizer, tmp_path, text, activation):
    """Of a model that has learned something, a calibrated router keeps more at equal computation."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{**PLAIN, "hidden_act": activation, "intermediate_size": 128}, vocab_size=len(tokenizer)
    )
    model = LlamaForCausalLM(config)
    ids = torch.tensor(tokenizer(TEXT)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        batch = torch.stack([ids[start : start + 64] for start in torch.randint(len(ids) - 64, (16,))])
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    source = native.save(model, tmp_path / "native")
    tokenizer.save_pretrained(source)
    options = dict(experts=8, top_k=4)
    lost = {
        (method, router): gap(
            source, tmp_path / f"{method} {router}", text, method=method, router_init=router, **options
        )
        for method in ("random", "coactivation", "clusters")
        for router in ("normal", "calibration")
    }  # fmt: skip
    assert all(lost[method, "calibration"] < 0.9 * lost[method, "normal"] for method, _ in lost)
    if activation == "relu":  # SiLU leaves no neuron silent: there a random division is as good
        assert lost["coactivation", "calibration"] < lost["random", "calibration"]
        assert lost["clusters", "calibration"] < lost["random", "calibration"]


def test_same_seed_same_bytes(source, text, tmp_path):
    options = dict(experts=6, top_k=2, method="coactivation", shared=1, calibration=[text])
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        split(source, tmp_path / name / "moe", seed=seed, **options)
    first, again, other = (snapshot(tmp_path / name / "moe") for name in ("first", "again", "other"))
    assert first == again != other
    assert first["model.safetensors"] != other["model.safetensors"]


@pytest.mark.parametrize("converted", [False, True])
def test_dry_run_reads_no_tensor(source, text, tmp_path, monkeypatch, converted):
    if converted:
        convert(source, tmp_path / "moeba", certificate=False)
        source = tmp_path / "moeba"
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a tensor was read"))
    options = dict(experts=6, top_k=2, method="coactivation", calibration=[text], shared=1)
    result = split(source, tmp_path / "out", dry_run=True, **options)
    assert result.report is None and not (tmp_path / "out").exists()
    lines = "\n".join(result.plan.describe())
    assert "model.layers.1.mlp.experts.down_proj [5, 32, 8] <- model.layers.1.mlp.down_proj.weight" in lines
    assert "LOSSY" in lines


def test_refusals(source, text, tmp_path):
    before = snapshot(source)
    short = tmp_path / "short"
    short.write_text("few words")
    split(source, tmp_path / "moe", experts=4, top_k=2, certificate=False)
    cases = [
        (source, dict(experts=5), "experts=5 does not divide intermediate_size=48"),
        (source, dict(experts=0), "experts=0 must be at least 1"),
        (source, dict(top_k=5), "top_k=5 must be between 1 and 4"),
        (source, dict(top_k=4, shared=1), "top_k=4 must be between 1 and 3, the experts that are not shared"),
        (source, dict(shared=4), "shared=4 must be at least 0 and below experts=4"),
        (source, dict(shared=-1), "shared=-1"),
        (source, dict(method="gradient"), "method='gradient': choose one of random, coactivation, clusters"),
        (source, dict(method="coactivation"), "'coactivation' needs calibration text files"),
        (source, dict(router_init="calibration"), "router_init='calibration' needs calibration text files"),
        (source, dict(router_init="zeros"), "router_init='zeros' would send every token to the same experts"),
        (source, dict(router_init="ones"), "router_init='ones': choose one of calibration, normal, zeros"),
        (source, dict(calibration=[short]), "calibration gave .* tokens for 4 experts: give at least 16"),
        (source, dict(calibration=[tmp_path / "none"]), "calibration file .*none"),
        (source, dict(layers="0,9"), r"\[9\] do not exist"),
        (source, dict(to="gpt2", shared=1), "gpt2"),
        (tmp_path / "moe", {}, r"already has experts in layers \[1\]: split starts from a dense model"),
    ]  # fmt: skip
    for folder, options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            split(folder, tmp_path / "out", **{"experts": 4, "top_k": 2, **options})
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    assert snapshot(source) == before


def test_equal_clusters_scale():
    """As many neurons and experts as large models have, in clusters of exactly the same size."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(64, 16, generator=generator)
    truth = torch.randperm(14336, generator=generator) % 64
    vectors = centres[truth] + 0.1 * torch.randn(14336, 16, generator=generator)
    owner = equal_clusters(vectors, 64, generator)
    assert torch.bincount(owner, minlength=64).tolist() == [224] * 64
    pairs = torch.bincount(truth * 64 + owner, minlength=64 * 64).reshape(64, 64)
    # Of nearly all groups most are together again.
    assert pairs.max(dim=1).values.sum() > 0.85 * 14336


def test_equal_assignment_prefers_those_who_would_lose_most():
    likeness = torch.tensor([[0.9, 0.8], [0.9, 0.1], [0.8, 0.7], [0.9, 0.0]])
    assert assign_equally(likeness).tolist() == [1, 0, 1, 0]
    assert sorted(assign_equally(torch.zeros(6, 3)).tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("method", ["coactivation", "clusters"])
def test_bytes_do_not_depend_on_the_number_of_threads(tokenizer, tmp_path, method):
    """Of the whole folder, and a run that was stopped goes on with another number."""
    (tmp_path / "text").write_text(TEXT[:6000])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    before = torch.get_num_threads()

    def run(threads: int, out: str, **options: Any) -> dict[str, str]:
        torch.set_num_threads(threads)
        given = dict(experts=6, top_k=2, shared=1, method=method, calibration=[tmp_path / "text"])
        split(tmp_path / "dense", tmp_path / out, **given, max_shard_size="100KB", **options)
        return snapshot(tmp_path / out)

    def stop(done: int, total: int, what: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    try:
        expected = run(1, "one")
        with pytest.raises(KeyboardInterrupt):
            run(1, "three", progress=stop)
        assert run(3, "three") == expected
    finally:
        torch.set_num_threads(before)

"""Merging several models of one base: what becomes of each tensor, the routers, the measured gap, and the refusals."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import native
import pytest
import torch
import yaml
from native import load, read_all, snapshot
from support import random_ids, randomise
from transformers import AutoModelForCausalLM

from moeba import MoebaConfig, MoebaForCausalLM, MoebaTokenizer, merge, upcycle
from moeba.conversion.checkpoint import Checkpoint
from moeba.surgery.merging_parts.published_recipe import published
from moeba.surgery.running.sources import Source

CODE = Path(argparse.__file__).read_text(encoding="utf-8")[20_000:]
PROSE = (difflib.__doc__ or "") + "\n".join(
    doc for name in ("json", "email", "asyncio", "logging", "pathlib") if (doc := __import__(name).__doc__)
)
PLAIN = dict(
    hidden_size=32, intermediate_size=20, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3,
    attention_bias=False, mlp_bias=False, hidden_act="silu", tie_word_embeddings=False, head_dim=8,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0}, max_position_embeddings=128,
)  # fmt: skip
FIELDS = {"llama": PLAIN, "gpt2": dict(n_layer=3, n_embd=24, n_head=3), "gpt_neox": {}, "gemma2": {}}


@pytest.fixture(scope="module")
def tokenizer():
    return MoebaTokenizer.train([CODE, PROSE], vocab_size=400)


def models(folder: Path, tokenizer, model_type: str = "llama", names=("base", "code", "prose"), **fields):
    """Random models of one config, each with weights of its own."""
    for seed, name in enumerate(names):
        native.make(
            folder / name,
            model_type,
            seed=0,
            **{**FIELDS[model_type], "vocab_size": len(tokenizer), **fields},
        )
        model = load(AutoModelForCausalLM, folder / name)
        if seed:
            randomise(model, seed)
        native.save(model, folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def two(tmp_path, tokenizer):
    (tmp_path / "code.txt").write_text(CODE[:6000])
    (tmp_path / "prose.txt").write_text(PROSE[:6000])
    return models(tmp_path, tokenizer)


RECIPE = {
    "base_model": "base",
    "gate_mode": "hidden",
    "dtype": "float32",
    "experts": [
        {"source_model": "code", "positive_prompts": ["def parse(self, args):", "import sys\nreturn None"]},
        {"source_model": "prose", "positive_prompts": ["This module provides an interface."]},
    ],
}
CALIBRATED = {
    "base_model": "base",
    "experts": [
        {"source_model": "code", "calibration": "code.txt"},
        {"source_model": "prose", "calibration": ["prose.txt"]},
    ],
}


def write(folder: Path, recipe: dict, **changes) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, **changes}, sort_keys=False))
    return path


def moeba_tensors(folder: Path) -> dict[str, torch.Tensor]:
    source = Source(folder)
    return {name: source.tensors.read(name) for name in source.tensors.tensors}


@pytest.mark.parametrize("model_type", FIELDS)
def test_experts_are_the_sources_feed_forwards_and_the_rest_is_the_base(tmp_path, tokenizer, model_type):
    models(tmp_path, tokenizer, model_type)
    merge(write(tmp_path, RECIPE), tmp_path / "moe", certificate=False)
    merged = read_all(tmp_path / "moe")
    base, *sources = (moeba_tensors(tmp_path / name) for name in ("base", "code", "prose"))
    config = MoebaConfig.from_pretrained(tmp_path / "moe")
    assert config.sparse_layers == list(range(config.num_hidden_layers))
    assert (config.num_experts, config.num_experts_per_tok) == (2, 2)
    seen = set()
    for name, tensor in merged.items():
        if name in base:
            assert torch.equal(tensor, base[name]), name
        elif ".experts." in name:
            mlp, part = name.split("experts.")
            kind = "bias" if part.endswith("_bias") else "weight"
            fused = part.removesuffix("_bias")
            parts = ("gate_proj", "up_proj") if fused == "gate_up_proj" else (fused,)
            for expert, source in enumerate(sources):
                whole = torch.cat([source[f"{mlp}{projection}.{kind}"] for projection in parts])
                assert torch.equal(tensor[expert], whole), name
            seen.update(f"{mlp}{projection}.{kind}" for projection in parts)
        else:
            assert name.endswith("mlp.gate.weight")
    assert seen == {name for name in base if ".mlp." in name}


def test_average_is_the_mean_of_the_distinct_models(two):
    twice = [*RECIPE["experts"], {**RECIPE["experts"][0], "name": "again"}]
    merge(write(two, RECIPE, others="average", experts=twice), two / "moe", certificate=False)
    merge(write(two, RECIPE, others="prose"), two / "donor", certificate=False)
    merged, donor = read_all(two / "moe"), read_all(two / "donor")
    code, prose = (moeba_tensors(two / name) for name in ("code", "prose"))
    outside = [name for name in code if ".mlp." not in name]
    for name in outside:
        assert torch.equal(donor[name], prose[name])
        mean = (code[name].double() + prose[name].double()) / 2
        assert (merged[name] - mean).abs().max() <= 1e-6 * mean.abs().max(), name


@pytest.mark.parametrize("others", ["base", "average", "code"])
def test_a_merge_of_equal_models_is_an_upcycle_and_proven(tmp_path, tokenizer, others):
    models(tmp_path, tokenizer, names=("base",))
    for name in ("code", "prose"):
        (tmp_path / name).mkdir()
        for file in (tmp_path / "base").iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    recipe = write(tmp_path, {**RECIPE, "others": others}, gate_mode="random", experts_per_token=1)
    result = merge(recipe, tmp_path / "moe")
    assert result.certificate.verdict == "verified" and result.gap is None
    assert all(control.caught for control in result.certificate.negative_controls)
    record = json.loads((tmp_path / "moe" / "surgery.json").read_text())
    assert record["exact"] is True and record["gap"] is None
    upcycle(tmp_path / "base", tmp_path / "copies", experts=2, top_k=1, layers="all", certificate=False)
    native.same_tensors(read_all(tmp_path / "moe"), read_all(tmp_path / "copies"))


def test_the_same_model_several_times(tmp_path, tokenizer):
    """mergekit's own example of sparse upcycling, exported."""
    models(tmp_path, tokenizer, names=("base",))
    recipe = {"base_model": "base", "gate_mode": "random", "dtype": "float32",
              "experts": [{"source_model": "base"}] * 8}  # fmt: skip
    result = merge(write(tmp_path, recipe), tmp_path / "moe", export=True)
    assert result.certificate.verdict == "verified"
    stock = load(AutoModelForCausalLM, tmp_path / "moe")
    assert type(stock).__name__ == "MixtralForCausalLM"
    ids = random_ids(2, 20, 100)
    with torch.no_grad():
        ours, theirs = stock(ids).logits, load(AutoModelForCausalLM, tmp_path / "base")(ids).logits
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.std()


def test_gap_of_each_source(two):
    result = merge(write(two, CALIBRATED), two / "moe")
    assert result.certificate is None
    record = json.loads((two / "moe" / "surgery.json").read_text())
    assert record["exact"] is False and record["gap"] == result.gap
    assert [item["name"] for item in result.gap["per_source"]] == ["code", "prose"]
    model = load(MoebaForCausalLM, two / "moe")
    tokenizer = MoebaTokenizer.from_pretrained(two / "base")
    for item in result.gap["per_source"]:
        assert item["text"] == f"{item['name']}.txt" and item["kl"] > 0.01 and item["tokens"] > 500
        source = load(AutoModelForCausalLM, two / item["name"])
        text = (two / item["text"]).read_text()
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = ids[: len(ids) // 128 * 128].view(-1, 128)
        for one, key in ((source, "source_nll"), (model, "target_nll")):
            with torch.no_grad():
                nll = torch.nn.functional.cross_entropy(
                    one(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
                )
            assert abs(nll.item() - item[key]) < 1e-3
    recipe = record["recipe"]
    assert recipe["gate_mode"] == "calibration" and recipe["experts"] == CALIBRATED["experts"]
    assert record["recipe_text"] == (two / "recipe.yaml").read_text()


def test_nothing_that_is_made_says_where_things_lay(two):
    """A recipe of absolute and of relative paths, with comments, and one in Python: names stay, and prompts do."""
    (two / "recipes").mkdir()
    text = f"""# for {two}/clients/acme
base_model: &base {two}/base  # from {two}/base
experts:
  - source_model: ../code
    calibration: [{two}/code.txt, ../prose.txt]
    positive_prompts: ["what is /etc/hosts/x?"]
  - source_model: {{model: {{path: "{two}/prose"}}}}
    calibration: ../prose.txt
others: base
"""
    (two / "recipes" / "r.yaml").write_text(text)
    merge(two / "recipes" / "r.yaml", two / "one", to="mixtral", export=True)
    record = json.loads((two / "one" / "surgery.json").read_text())
    told = text.replace(f"{two}/clients/", "").replace(f'"{two}/prose"', "prose")
    assert record["recipe_text"] == told.replace(f"{two}/", "").replace("../", "")
    in_python = {
        "base_model": str(two / "base"),
        "experts": [
            {"source_model": {"model": str(two / "code")}, "calibration": [two / "code.txt"]},
            {"source_model": str(two / "prose"), "calibration": str(two / "prose.txt")},
        ],
    }
    merge(in_python, two / "two")
    experts = json.loads((two / "two" / "surgery.json").read_text())["recipe"]["experts"]
    assert experts[0] == {"source_model": {"model": "code"}, "calibration": ["code.txt"]}
    assert experts[1] == {"source_model": "prose", "calibration": "prose.txt"}
    for path in [*(two / "one").rglob("*"), *(two / "two").rglob("*")]:
        assert not path.is_file() or bytes(two) not in path.read_bytes(), path
    provenance = json.loads((two / "two" / "moeba_provenance.json").read_text())
    assert provenance["recipe"]["experts"] == experts and provenance["source"]["path"] == "base"


@pytest.mark.parametrize(
    "given, told",
    [
        ("user/model", "user/model"),
        ("user/model@main+user/adapter@v1", "user/model@main+user/adapter@v1"),
        ("base", "base"),
        ("./base", "base"),
        ("base@main", "base@main"),
        ("{folder}/base+user/adapter", "base+user/adapter"),
        ("{folder}/base+{folder}/deep/adapter@v2", "base+adapter@v2"),
        ("/nowhere/acme/model", "model"),
        ("../acme/model", "model"),
        ("~/acme/model", "model"),
        ("acme/2024/model", "model"),
        ("C:\\acme\\model", "model"),
    ],
)
def test_what_a_record_calls_a_model(given, told, tmp_path):
    (tmp_path / "base").mkdir()
    assert published({"base_model": given.format(folder=tmp_path)}, tmp_path) == {"base_model": told}


def test_routers_send_each_text_to_its_source(two):
    result = merge(write(two, CALIBRATED, experts_per_token=1), two / "moe", certificate=False)
    reports = json.loads((two / "moe" / "surgery.json").read_text())["reports"]["router"]
    assert set(reports) == {"0", "1", "2"}
    assert {"condition_number", "largest_cosine", "own_expert"} <= set(reports["0"])
    model = load(MoebaForCausalLM, two / "moe")
    tokenizer = MoebaTokenizer.from_pretrained(two / "base")
    for expert, name in enumerate(("code", "prose")):
        ids = torch.tensor(tokenizer((two / f"{name}.txt").read_text())["input_ids"])
        with torch.no_grad():
            routers = model(
                ids[: len(ids) // 128 * 128].view(-1, 128), output_router_logits=True
            ).router_logits
        own = torch.stack([(scores.argmax(-1) == expert).float().mean() for scores in routers])
        # Of random models a token's own identity is all that a router can go by: even is a half.
        assert own.mean() > 0.55, (name, own)
    assert any("as each router of the merged model receives it" in note for note in result.plan.notes)


def test_rows_are_those_of_the_router_s_true_input(two):
    """The row's direction, from a plain run of the finished model: lower layers have routed as they do there."""
    merge(write(two, {**RECIPE, "gate_mode": "hidden_avg"}), two / "moe", certificate=False)
    model = load(MoebaForCausalLM, two / "moe")
    tokenizer = MoebaTokenizer.from_pretrained(two / "base")
    for layer in range(3):
        seen = []
        hook = model.model.layers[layer].mlp.register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[0][0])
        )
        means, every = [], []
        for expert in RECIPE["experts"]:
            own, tokens = [], []
            for prompt in expert["positive_prompts"]:
                ids = tokenizer(prompt)["input_ids"]
                with torch.no_grad():
                    model(torch.tensor([ids]))
                vectors = seen.pop()
                tokens.append(vectors)
                own.append(vectors[[token not in tokenizer.all_special_ids for token in ids]].mean(0))
            means.append(torch.stack(own).mean(0))
            every.append(torch.cat(tokens))
        hook.remove()
        # Both texts count alike, however long they are.
        most = max(map(len, every))
        every = [vectors[torch.arange(most) % len(vectors)] for vectors in every]
        shared = torch.nn.functional.normalize(torch.cat(every).mean(0), dim=0)
        expected = means[0] - means[1]
        expected = expected - (expected @ shared) * shared
        rows = model.model.layers[layer].mlp.gate.weight
        cosines = torch.nn.functional.cosine_similarity(rows, torch.stack([expected, -expected]))
        assert (cosines > 0.9999).all(), (layer, cosines)
        assert abs((torch.cat(every) @ rows.T).std().item() - 1) < 1e-3


@pytest.mark.parametrize(
    "mode", ["hidden", "hidden_last", "hidden_avg", "cheap_embed", "random", "uniform_random"]
)
def test_gate_modes(two, mode):
    result = merge(write(two, RECIPE, gate_mode=mode, seed=3), two / "moe", certificate=False)
    merge(write(two, RECIPE, gate_mode=mode, seed=3), two / "again", certificate=False)
    merge(write(two, RECIPE, gate_mode=mode, seed=4), two / "other", certificate=False)
    rows, again, other = (
        {name: tensor for name, tensor in read_all(two / folder).items() if name.endswith("mlp.gate.weight")}
        for folder in ("moe", "again", "other")
    )
    native.same_tensors(rows, again)
    drawn = mode in ("random", "uniform_random")
    assert all(torch.equal(rows[name], other[name]) != drawn for name in rows)
    first, second, _ = rows.values()
    assert torch.equal(first, second) == (mode == "cheap_embed")
    assert any(f"gate_mode '{mode}'" in note for note in result.plan.notes)


def test_negative_prompts_turn_a_row(two):
    experts = [{**RECIPE["experts"][0], "negative_prompts": ["A quiet evening."]}, RECIPE["experts"][1]]
    for name, given in (("with", experts), ("without", RECIPE["experts"])):
        merge(write(two, RECIPE, experts=given), two / name, certificate=False)
    rows = [read_all(two / name)["model.layers.1.mlp.gate.weight"] for name in ("with", "without")]
    assert torch.nn.functional.cosine_similarity(*rows)[0] < 0.99


def test_noise_and_scales(two):
    edited = [{**RECIPE["experts"][0], "noise_scale": 0.05, "residual_scale": 0.5}, RECIPE["experts"][1]]
    merge(write(two, RECIPE, experts=edited), two / "moe", certificate=False)
    merge(write(two, RECIPE), two / "plain", certificate=False)
    noisy, plain = read_all(two / "moe"), read_all(two / "plain")
    up, down = (f"model.layers.1.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj"))
    assert abs((noisy[up] - plain[up])[0].std() - 0.05) < 0.005
    assert abs((2 * noisy[down] - plain[down])[0].std() - 0.05) < 0.005
    assert torch.equal(noisy[up][1], plain[up][1]) and torch.equal(noisy[down][1], plain[down][1])


def test_shared_expert(two):
    shared = [{"source_model": "base", "positive_prompts": ["Once upon a time"], "residual_scale": 0.1}]
    merge(write(two, RECIPE, shared_experts=shared), two / "moe", certificate=False, to="qwen2_moe")
    merged, base = read_all(two / "moe"), moeba_tensors(two / "base")
    mlp = "model.layers.2.mlp."
    assert torch.equal(merged[f"{mlp}shared_expert.up_proj.weight"], base[f"{mlp}up_proj.weight"])
    expected = base[f"{mlp}down_proj.weight"] * 0.1
    assert torch.allclose(merged[f"{mlp}shared_expert.down_proj.weight"], expected)
    assert merged[f"{mlp}shared_expert_gate.weight"].std() > 0
    with pytest.raises(ValueError, match="room for one"):
        merge(write(two, RECIPE, shared_experts=shared * 2), two / "out")


@pytest.mark.parametrize("mode", ["random", "uniform_random"])
def test_prompts_that_a_mode_does_not_read_are_no_matter(two, mode):
    """As people's recipes have them: empty, null, of another type, or the same for all; and for a shared expert."""
    for place, prompts in enumerate(([""], [None], None, "", 3, [" "], ["the same"])):
        given = {} if place == 2 else {"positive_prompts": prompts, "negative_prompts": prompts}
        experts = [{"source_model": name, **given} for name in ("code", "prose")]
        shared = [{"source_model": "base", **given}]
        folder = two / f"moe{place}"
        recipe = write(two, RECIPE, gate_mode=mode, experts=experts, shared_experts=shared)
        merge(recipe, folder, certificate=False, to="qwen2_moe", dry_run=0 < place < 6)
    same, bare = read_all(two / "moe6"), read_all(two / "moe0")
    native.same_tensors(same, bare)  # the gate of the shared expert stands half open, and is made up for
    with pytest.raises(
        ValueError, match=r"experts\[0\]: positive_prompts must be a list of texts, not \[''\]"
    ):
        merge(write(two, RECIPE, experts=[{**RECIPE["experts"][0], "positive_prompts": [""]}]), two / "out")


def test_keys_of_other_methods_are_passed_over_and_told(two):
    """As mergekit's reader does; people's recipes have them."""
    recipe = write(
        two, RECIPE, merge_method="dare_ties", tokenizer_source="union", parameters={"int8_mask": True}
    )
    result = merge(recipe, two / "out", dry_run=True)
    assert (
        "not read in a recipe for a mixture: merge_method, tokenizer_source, parameters" in result.plan.notes
    )
    with pytest.raises(ValueError, match="unknown key 'merge_methods'"):
        merge(write(two, RECIPE, merge_methods="ties"), two / "out", dry_run=True)


def test_models_that_end_texts_by_other_tokens_are_named(two):
    path = two / "prose" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [5, 7]}))
    notes = merge(write(two, RECIPE), two / "out", dry_run=True).plan.notes
    assert [
        note for note in notes if note.startswith("eos_token_id: ") and "prose" in note and "code" not in note
    ]


def test_layers_and_dtype(two):
    merge(
        write(two, RECIPE, layers="0,2", dtype="bfloat16", others="average"), two / "moe", certificate=False
    )
    config = MoebaConfig.from_pretrained(two / "moe")
    assert config.sparse_layers == [0, 2] and config.dtype == torch.bfloat16
    merged = read_all(two / "moe")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    code, prose = (moeba_tensors(two / name) for name in ("code", "prose"))
    name = "model.layers.1.mlp.up_proj.weight"
    mean = ((code[name].double() + prose[name].double()) / 2).bfloat16()
    assert (merged[name] != mean).float().mean() < 0.01


def test_export_and_size_of_shards(two):
    result = merge(
        write(two, RECIPE, architecture="mixtral"), two / "out", export=True, max_shard_size="20KB"
    )
    assert result.report.shards > 3 and result.gap["per_source"][0]["kl"] > 0
    merge(write(two, RECIPE), two / "moe", certificate=False)
    stock = load(AutoModelForCausalLM, two / "out")
    ids = random_ids(2, 20, 100)
    with torch.no_grad():
        ours = load(MoebaForCausalLM, two / "moe")(ids).logits
        assert torch.allclose(stock(ids).logits, ours, atol=1e-4)


REFUSED = [
    (dict(experts_per_tokn=2), "unknown key 'experts_per_tokn': did you mean experts_per_token?"),
    (dict(gate_mode="hiden"), "gate_mode='hiden': choose one of hidden, hidden_avg"),
    (dict(dtype="int8"), "dtype='int8': choose one of"),
    (dict(experts_per_token=3), "experts_per_token=3 must be between 1 and the 2 experts"),
    (dict(experts=[]), "needs experts"),
    (dict(experts={"source_model": "code"}), "experts must be a list"),
    (dict(experts=[{"source_mode": "code"}]), r"experts\[0\] has an unknown key 'source_mode': did you mean source_m"),
    (dict(experts=[{"name": "x"}]), r"experts\[0\] needs source_model, or an adapter"),
    (dict(experts=[{"source_model": "code"}] * 2), "needs positive_prompts: code, code-2 has none"),
    (dict(experts=[{**RECIPE["experts"][0], "source_model": name} for name in ("code", "prose")]),
     "all experts have the same texts"),
    (dict(experts=[{**RECIPE["experts"][0], "name": "a"}, {**RECIPE["experts"][1], "name": "a"}]), "the same name: a"),
    (dict(experts=[{**RECIPE["experts"][0], "noise_scale": -1}, RECIPE["experts"][1]]), "noise_scale=-1 must be"),
    (dict(experts=[{**RECIPE["experts"][0], "calibration": "none.txt"}, RECIPE["experts"][1]]), "calibration file"),
    (dict(others="prse"), "others='prse': choose one of base, average, code, prose"),
    (dict(layers="9"), r"\[9\] do not exist"),
    (dict(architecture="deepseek"), "needs code from the Hub"),
    (dict(architecture="qwen3"), "qwen3_moe"),
    (dict(base_model="nowhere"), "neither a folder here nor a Hub id"),
]  # fmt: skip


def test_refusals(two):
    before = snapshot(two)
    for changes, message in REFUSED:
        with pytest.raises(ValueError, match=message) as caught:
            merge(write(two, RECIPE, **changes), two / "out")
        assert "\n" not in str(caught.value)
    (two / "recipe.yaml").write_text("base_model: base\nbase_model: code\n")
    with pytest.raises(ValueError, match="base_model stands twice"):
        merge(two / "recipe.yaml", two / "out")
    (two / "recipe.yaml").unlink()
    assert snapshot(two) == before
    with pytest.raises(ValueError, match="holds recipe.yaml, which is read"):
        merge(write(two, RECIPE), two, overwrite=True)


def test_models_that_differ_are_refused(two, tokenizer):
    models(two, tokenizer, names=("wide", "other"), intermediate_size=24)
    models(two, tokenizer, names=("rope",), rope_parameters={"rope_type": "default", "rope_theta": 900.0})
    models(two, tokenizer, names=("half", "foreign", "cut"))
    native.save(load(AutoModelForCausalLM, two / "half", dtype=torch.bfloat16), two / "half")
    MoebaTokenizer.train([PROSE], vocab_size=400).save_pretrained(two / "foreign")
    tokens = json.loads((two / "cut" / "tokenizer.json").read_text())
    tokens["model"]["merges"] = tokens["model"]["merges"][::-1]
    (two / "cut" / "tokenizer.json").write_text(json.dumps(tokens))
    cases = [
        ("wide", {}, r"wide: intermediate_size=24 \(here: 20\)"),
        ("rope", {}, "rope: rope_parameters=.*900"),
        (
            "half",
            {"dtype": None},
            r"half: lm_head.weight is stored as torch.bfloat16 \(here: torch.float32\): say dtype",
        ),
        ("foreign", {}, "the vocabularies differ .*: foreign: [0-9]+ tokens differ.*say vocab"),
        ("cut", {}, "cut: the same tokens, but a text is cut into others"),
    ]
    for name, changes, message in cases:
        experts = [{**RECIPE["experts"][0], "source_model": name}, RECIPE["experts"][1]]
        with pytest.raises(ValueError, match=message):
            merge(write(two, RECIPE, experts=experts, **changes), two / "out", dry_run=True)
    experts = [{**RECIPE["experts"][0], "source_model": "half"}, RECIPE["experts"][1]]
    merge(write(two, RECIPE, experts=experts), two / "cast", certificate=False)
    upcycle(two / "code", two / "moe", experts=2, top_k=1, certificate=False)
    with pytest.raises(ValueError, match="already has experts"):
        merge({**RECIPE, "base_model": two / "moe", "experts": [{"source_model": two / "moe"}] * 2,
               "gate_mode": "random"}, two / "out")  # fmt: skip


def test_dry_run_reads_no_tensor(two, monkeypatch):
    def refuse(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "read", refuse)
    monkeypatch.setattr(Checkpoint, "sha256", refuse)
    result = merge(write(two, CALIBRATED, others="average"), two / "moe", dry_run=True)
    assert result.report is None and not (two / "moe").exists()
    lines = result.plan.describe()
    assert any(
        "experts.down_proj [2, 32, 20] <- code/model.layers.0.mlp.down_proj.weight" in line for line in lines
    )


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(two):
    recipe = write(two, CALIBRATED, others="average")
    merge(recipe, two / "whole", certificate=False, max_shard_size="20KB")
    script = (
        "import os, signal, sys\n"
        "from moeba import merge\n"
        "def progress(done, total, what):\n"
        "    if done > total / 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "merge(sys.argv[1], sys.argv[2], certificate=False, max_shard_size='20KB', progress=progress)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, recipe, two / "out"], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL and not (two / "out").exists()
    result = merge(recipe, two / "out", certificate=False, max_shard_size="20KB")
    assert result.report.reused_shards > 0
    first, second = (
        {name: digest for name, digest in snapshot(two / name).items() if name.endswith(".safetensors")}
        for name in ("whole", "out")
    )
    assert first == second and len(first) > 3

"""Folders, recipes and paths that make no sense: one line about the user's own file, never "a fault in Moeba"."""

from __future__ import annotations

import json
import os
import random
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from test_errors import one_line

HUGE = 10**12
CONFIGS = [
    dict(model_type=[]), dict(model_type={"a": 1}), dict(architectures=5), dict(architectures=[[]]), dict(dtype=2.5),
    dict(dtype="banana"), dict(torch_dtype=[1]), dict(pad_token_id=HUGE), dict(eos_token_id="x"),
    dict(num_hidden_layers=HUGE), dict(num_hidden_layers=1e12), dict(hidden_size=HUGE), dict(num_attention_heads=HUGE),
    dict(vocab_size=HUGE), dict(rope_parameters=[1]), dict(rope_scaling="x"), dict(id2label=3),
    dict(id2label={"a": "b"}), dict(auto_map=3), dict(quantization_config=3), dict(transformers_version=[]),
    dict(tie_word_embeddings="yes"), dict(hidden_act=[]), dict(layer_types=5), dict(rms_norm_eps=float("nan")),
    dict(rope_parameters={"rope_type": "default", "rope_theta": float("inf")}),
]  # fmt: skip
FILES = [
    ("generation_config.json", "[1]"), ("generation_config.json", '{"eos_token_id": {}}'),
    ("tokenizer.json", "{}"), ("tokenizer_config.json", "{"), ("special_tokens_map.json", "3"),
    ("added_tokens.json", "[]"), ("README.md", "---\nlicense: [\n---\n"), ("moeba_provenance.json", '{"history": 3}'),
    ("parity.json", "[1]"), ("surgery.json", "3"), ("trainer_state.json", '{"log_history": 3}'),
    ("evaluation.json", "[]"), ("chat_template.jinja", "{% for %}"), ("config.json", "[" * 100_000),
]  # fmt: skip
VERBS = ["inspect", "card", "generate", "convert", "upcycle", "export", "bundle"]


def words(verb: str, folder: Path, out: Path) -> list:
    if verb in ("inspect", "card"):
        return [verb, folder]
    if verb == "generate":
        return [verb, folder, "the cat", "--max-new-tokens", 1]
    if verb == "bundle":
        return [verb, folder, out]
    more = ["--experts", 2, "--top-k", 1] if verb == "upcycle" else []
    return [verb, folder, out, *more, "--no-certify", "--dry-run"]


@pytest.mark.parametrize("case", [*CONFIGS, *FILES], ids=str)
def test_no_folder_is_a_fault_of_ours(moeba, llama, converted, tmp_path, case):
    """Two verbs a case, drawn; the seed draws others."""
    rng = random.Random(f"{os.environ.get('MOEBA_TEST_SEED', '0')} {case}")
    for verb in rng.sample(VERBS, 2):
        folder = tmp_path / verb
        shutil.copytree(llama if verb == "convert" else converted, folder)
        if isinstance(case, dict):
            path = folder / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **case}))
        else:
            (folder / case[0]).write_text(case[1])
        said = moeba(*words(verb, folder, tmp_path / "out"))
        assert "a fault in Moeba" not in said.err and "partial" not in said.err, (verb, said.err)
        assert said.code in (0, 1)
        if said.code:
            one_line(said)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize("verb", ["card", "bundle", "push", "inspect", "convert", "merge"])
def test_an_empty_path_is_not_this_folder(moeba, monkeypatch, tmp_path, verb):
    monkeypatch.chdir(tmp_path)
    said = moeba(
        verb, "", *(["out"] if verb in ("bundle", "convert", "merge") else ["me/x"] * (verb == "push"))
    )
    assert said.code in (1, 2)
    assert "empty" in one_line(said)
    assert list(tmp_path.iterdir()) == []


def test_no_card_where_no_model_is(moeba, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = moeba("card", ".")
    assert said.code == 1
    assert "holds no model" in one_line(said)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_size_of_400_digits(moeba, llama, tmp_path):
    said = moeba("convert", llama, tmp_path / "out", "--max-shard-size", "9" * 400)
    assert said.code == 1
    assert "max_shard_size is" in one_line(said) and len(said.err) < 300


EXPERTS = "[{source_model: a, positive_prompts: [x]}, {source_model: b, positive_prompts: [y]}]"
RECIPES = {
    "no model": ("{base_model: a, experts: [{source_model: {model: null}, positive_prompts: [x]}]}", "names no model"),
    "no path": ("{base_model: {model: {path: null}}, experts: [{source_model: a}]}", "path and revision must be texts"),
    "calibration": ("{base_model: a, experts: [{source_model: a, calibration: 3}]}", "calibration must be text files"),
    "prompts": ("{base_model: a, experts: [{source_model: a, positive_prompts: 0}]}", "must be a list of texts"),
    "noise": (
        "{base_model: a, experts: [{source_model: a, positive_prompts: [x], noise_scale: 1" + "0" * 400 + "}]}",
        "noise_scale",
    ),
    "seed": ("{base_model: a, seed: 1" + "0" * 30 + f", experts: {EXPERTS}}}", "seed="),
    "layers": (f"{{base_model: a, layers: {{a: 1}}, experts: {EXPERTS}}}", "layers="),
    "architecture": (f"{{base_model: a, architecture: [1], experts: {EXPERTS}}}", "architecture="),
    "gate mode": (f"{{base_model: a, gate_mode: [1], experts: {EXPERTS}}}", "gate_mode="),
    "deep": ("base_model: " + "[" * 2000, "nested too deeply"),
    "list": ("[1]", "must hold base_model"),
    "key": ("{[1]: 2}", "recipe"),
    "endless": ("base_model: &a [*a]\nexperts: *a", "base_model"),
    "bomb": (
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in pairwise("abcdefghi"))
        + "base_model: *i\nexperts: *i",
        "unknown key",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_the_wrong_kind(moeba, tmp_path, name):
    text, message = RECIPES[name]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    said = moeba("merge", recipe, tmp_path / "out")
    assert said.code == 1
    assert message in one_line(said) and "a fault in Moeba" not in said.err and len(said.err) < 1000

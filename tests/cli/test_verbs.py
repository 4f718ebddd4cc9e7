"""Each verb does what its help says, on a small real model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moeba.conversion import FAMILIES, catalogue
from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.families import KNOWN_FAMILIES
from moeba.conversion.unsupported import UNSUPPORTED

VERBS = (
    "convert",
    "export",
    "upcycle",
    "merge",
    "split",
    "certify",
    "inspect",
    "generate",
    "evaluate",
    "families",
    "bundle",
    "card",
    "push",
    "demo",
    "doctor",
)


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_and_shows_an_example(moeba, verb):
    said = moeba(verb, "--help")
    assert said.code == 0
    assert f"Example: moeba {verb}" in " ".join(said.out.split())
    assert len(said.out.split("Example:")[0].split()) > 10, "the help explains next to nothing"


def test_help_lists_every_verb(moeba):
    said = moeba("--help")
    assert said.code == 0
    assert all(f"│ {verb} " in said.out for verb in VERBS)


def test_convert_upcycle_export_certify(moeba, llama, tmp_path):
    dense, sparse, mixtral = tmp_path / "moeba", tmp_path / "moe", tmp_path / "mixtral"
    said = moeba("convert", llama, dense)
    assert (said.code, said.out.count("\n")) == (0, 1)
    assert said.out.startswith(f"{dense}: 21 tensors in 1 weight files")
    assert "verified: convert" in said.err
    assert moeba("upcycle", dense, sparse, "--experts", 4, "--top-k", 2, "--layers", "0,1").code == 0
    assert moeba("export", sparse, mixtral, "--to", "mixtral").code == 0
    assert type(AutoModelForCausalLM.from_pretrained(mixtral)).__name__ == "MixtralForCausalLM"
    said = moeba("certify", sparse, mixtral, "--output", tmp_path / "parity.json", "--json")
    assert said.code == 0
    assert json.loads(said.out)["verdict"] == "verified"
    assert json.loads((tmp_path / "parity.json").read_text())["verdict"] == "verified"


def test_json_is_all_there_is_on_stdout(moeba, llama, tmp_path):
    said = moeba("convert", llama, tmp_path / "moeba", "--json", "--no-certify")
    result = json.loads(said.out)
    assert result["folder"] == str(tmp_path / "moeba")
    assert result["report"]["tensors"] == 21
    assert result["certificate"] is None


def test_merge(moeba, llama, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base_model: {llama}\ngate_mode: random\nexperts: [{{source_model: {llama}, noise_scale: 0.1}}, "
                      f"{{source_model: {llama}}}]\n")  # fmt: skip
    said = moeba("merge", recipe, tmp_path / "moe", "--to", "mixtral", "--export")
    assert (said.code, said.out.count("\n")) == (0, 1)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "moe")).__name__ == "MixtralForCausalLM"
    assert said.err.count("not the same function") == 3 and "nats a token" in said.err
    said = moeba("merge", recipe, tmp_path / "padded", "--vocab", "pad", "--dry-run")
    assert said.code == 0
    said = moeba("merge", recipe, tmp_path / "out", "--vocab", "all", "--dry-run")
    assert said.code != 0 and "vocab='all': choose one of strict, trim, pad, union" in said.err


def test_split(moeba, llama, tmp_path):
    said = moeba("split", llama, tmp_path / "moe", "--experts", 4, "--top-k", 1, "--shared", 1)
    assert (said.code, said.out.count("\n")) == (0, 1)
    assert "LOSSY until it is trained" in said.err and "not the same function: " in said.err
    said = moeba("split", llama, tmp_path / "same", "--experts", 4, "--top-k", 4)
    assert said.code == 0 and "verified: split" in said.err


@pytest.mark.parametrize(
    "words",
    [
        ("export", "--to", "llama"),
        ("upcycle", "--experts", 4, "--top-k", 2),
        ("split", "--experts", 4, "--top-k", 2),
    ],
)
def test_dry_run_shows_the_plan_and_reads_no_tensor(moeba, converted, tmp_path, monkeypatch, words):
    def read(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "read", read)
    said = moeba(words[0], converted, tmp_path / "new", *words[1:], "--dry-run")
    assert said.code == 0
    assert "<-" in said.out
    assert "Nothing was written" in said.err
    assert not any(tmp_path.iterdir())
    plan = json.loads(moeba(words[0], converted, tmp_path / "new", *words[1:], "--dry-run", "--json").out)
    assert (plan["report"], len(plan["steps"])) == (None, len(said.out.splitlines()))


def test_overwrite_replaces(moeba, llama, tmp_path):
    assert moeba("convert", llama, tmp_path / "moeba", "--no-certify").code == 0
    said = moeba("convert", llama, tmp_path / "moeba", "--no-certify")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert moeba("convert", llama, tmp_path / "moeba", "--no-certify", "--overwrite").code == 0


def test_calibration_files_reach_the_router(moeba, converted, tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat and saw the dog " * 20)
    (tmp_path / "b.txt").write_text("a dog sat on a log and saw the cat " * 20)
    files = ["--calibration", tmp_path / "a.txt", "--calibration", tmp_path / "b.txt"]
    words = ["--experts", 2, "--top-k", 1, "--router-init", "calibration", *files, "--no-certify"]
    said = moeba("upcycle", converted, tmp_path / "moe", *words)
    assert said.code == 0, said.err
    recipe = json.loads((tmp_path / "moe" / "moeba_provenance.json").read_text())["recipe"]
    assert [Path(file).name for file in recipe["calibration"]] == ["a.txt", "b.txt"]


def test_different_models_are_not_certified(moeba, llama, converted, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in converted.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1.5
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    said = moeba("certify", llama, other)
    assert said.code == 3
    assert said.out.startswith("failed: ")


def test_inspect_says_the_same_of_native_and_moeba(moeba, llama, converted, monkeypatch):
    monkeypatch.setattr(Checkpoint, "read", lambda self, name: pytest.fail(f"{name} was read"))
    native, ours = (json.loads(moeba("inspect", folder, "--json").out) for folder in (llama, converted))
    assert native["model_type"] == "llama"
    assert ours["model_type"] == "moeba"
    for key in ("parts", "layers", "parameters"):
        assert native[key] == ours[key]
    assert ours["parameters"]["total"] == ours["weights"]["values"]
    assert ours["layers"] == [
        {"first": 0, "last": 1, "kind": "full attention, dense feed-forward of width 48"}
    ]
    assert (ours["certificate"]["verdict"], native["certificate"]) == ("verified", None)
    assert [step["operation"] for step in ours["provenance"]] == ["convert"]
    table = moeba("inspect", converted).out
    for words in (
        "Layers 0-1",
        "Parameters",
        "float32",
        "verified (convert)",
        "convert from",
        "chat template",
    ):
        assert words in table


def test_inspect_of_an_unsupported_type_shows_what_it_can(moeba, llama, tmp_path):
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    (folder / "config.json").write_text('{"model_type": "strange"}')
    facts = json.loads(moeba("inspect", folder, "--json").out)
    assert facts["parts"] is None
    assert "'strange' is not supported" in facts["unsupported"]
    assert facts["weights"]["tensors"] == 21
    assert "Not supported" in moeba("inspect", folder).out


@pytest.mark.parametrize("which", ["llama", "converted"])
def test_generate_continues_a_prompt(moeba, request, which):
    folder = request.getfixturevalue(which)
    for prompt in ("the cat", "a dog", "on the mat", "saw", "dog and", "log"):
        words = ["generate", folder, prompt, "--max-new-tokens", 4, "--temperature", 0]
        text = json.loads(moeba(*words, "--json").out)["text"]
        if "\N{REPLACEMENT CHARACTER}" not in text:  # bytes that are no text read otherwise one by one
            break
    said = moeba(*words)
    assert said.code == 0 and "\N{REPLACEMENT CHARACTER}" not in said.out
    assert said.out.rstrip("\n") == prompt + text.rstrip("\n")


def test_generate_whatever_else_the_settings_return(moeba, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "llama")
    (folder / "generation_config.json").write_text('{"return_dict_in_generate": true}')
    said = moeba("generate", folder, "the cat", "--max-new-tokens", 2)
    assert said.code == 0 and said.out.startswith("the cat")


def test_generate_draws_by_the_seed_and_answers_a_chat(moeba, llama):
    words = ["generate", llama, "the cat", "--max-new-tokens", 8, "--temperature", 2, "--json"]
    first, again, other = (json.loads(moeba(*words, "--seed", seed).out)["text"] for seed in (1, 1, 2))
    assert first == again != other
    said = moeba("generate", llama, "the cat", "--chat", "--max-new-tokens", 2)
    assert said.code == 0
    assert "the cat" not in said.out


def test_families_are_those_of_the_converter(moeba):
    listed = json.loads(moeba("families", "--json").out)
    assert [family["model_type"] for family in listed] == list(KNOWN_FAMILIES)
    assert {"exactness", "reason", "directions", "verified_with", "refused_unless", "needs"} <= set(listed[0])
    table = moeba("families").out
    assert all(model_type in table for model_type in KNOWN_FAMILIES)
    assert ("needs transformers" in table) == (set(FAMILIES) < set(KNOWN_FAMILIES))
    assert "add_cross_attention=False" in table


def test_families_that_are_refused(moeba):
    listed = json.loads(moeba("families", "--unsupported", "--json").out)
    assert {entry["model_type"]: entry["reason"] for entry in listed} == UNSUPPORTED
    assert "mamba2" in moeba("families", "--unsupported").out


def test_families_that_can_hold_a_model(moeba, llama):
    found = json.loads(moeba("families", "--holds", llama, "--json").out)
    assert set(found) == set(FAMILIES) and found["llama"] == ""
    assert "norm_type='rmsnorm'" in found["gpt2"]
    first = moeba("families", "--holds", llama).out.splitlines()[1]
    assert first.split()[:2] == ["llama", "yes"]


def test_families_as_the_readme_shows_them(moeba):
    assert moeba("families", "--markdown").out == catalogue.markdown() + "\n"


def test_bundle_and_card(moeba, converted, tmp_path):
    said = moeba("bundle", converted, tmp_path / "hub")
    assert said.code == 0
    assert (tmp_path / "hub" / "modeling_moeba.py").is_file()
    (tmp_path / "hub" / "README.md").unlink()
    said = moeba("card", tmp_path / "hub")
    assert (said.code, said.out) == (0, f"{tmp_path / 'hub' / 'README.md'}\n")
    assert (tmp_path / "hub" / "README.md").is_file()

"""A certificate stands for the files that it was made of: it falls when one that decides the function changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from card_folders import certificate, write_json
from safetensors.torch import load_file, save_file

from moeba.cli.inspection import inspect_folder
from moeba.conversion.binding import bind, changes_since, proven_code
from moeba.hub_card import bundle, write_card
from moeba.hub_card.reading.facts import gather_facts
from moeba.modeling.code_files import AUTO_MAP, code_files, write_code


@pytest.fixture
def proven(dense) -> Path:
    """A model with a certificate of all that lies beside it."""
    (dense / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "eos_token_id": 2}))
    target = {**certificate(dense)["target"], "bound": bind(dense), "code": proven_code(True)}
    write_json(dense, "parity.json", certificate(dense, target=target))
    write_card(dense)
    assert "**verified**" in (dense / "README.md").read_text()
    return dense


def edit(folder: Path, name: str, **fields: Any) -> None:
    values = json.loads((folder / name).read_text())
    for field, value in fields.items():
        owner = values
        *outer, last = field.split("__")
        for part in outer:
            owner = owner[part]
        owner[last] = value
    write_json(folder, name, values)


def swap_two_tokens(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    first, second = list(vocabulary)[20:22]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    write_json(folder, "tokenizer.json", values)


def change_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


CHANGES = {
    "theta": (
        lambda f: edit(f, "config.json", rope_parameters__rope_theta=5e5),
        "config.json: rope_parameters.rope_theta 10000.0 → 500000.0",
    ),
    "epsilon": (lambda f: edit(f, "config.json", norm_eps=0.5), "config.json: norm_eps 1e-06 → 0.5"),
    "dtype": (lambda f: edit(f, "config.json", dtype="bfloat16"), 'config.json: dtype "float32" → "bfloat16"'),
    "another field": (
        lambda f: edit(f, "config.json", sliding_window=8), "config.json: sliding_window null → 8",
    ),
    "quantised": (
        lambda f: edit(f, "config.json", quantization_config={"bits": 4}),
        "config.json: quantization_config.bits not given → 4",
    ),
    "tokens": (swap_two_tokens, "tokenizer.json: it was changed"),
    "settings": (
        lambda f: edit(f, "tokenizer_config.json", add_bos_token=True),
        "tokenizer_config.json: add_bos_token false → true",
    ),
    "template": (
        lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"), "chat_template.jinja: it was",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: it is gone"),
    "generation": (
        lambda f: edit(f, "generation_config.json", eos_token_id=3), "generation_config.json: eos_token_id 2 → 3",
    ),
    "another spelling": (
        lambda f: edit(f, "config.json", rms_norm_eps=0.5), "config.json: rms_norm_eps not given → 0.5",
    ),
    "weights elsewhere": (
        lambda f: edit(f, "config.json", transformers_weights="evil.safetensors"),
        'config.json: transformers_weights not given → "evil.safetensors"',
    ),
    "special tokens": (
        lambda f: write_json(f, "special_tokens_map.json", {"eos_token": "x"}), "special_tokens_map.json: it was",
    ),
    "added tokens": (lambda f: write_json(f, "added_tokens.json", {"<x>": 3}), "added_tokens.json: it was added"),
    "unreadable": (
        lambda f: (f / "generation_config.json").write_text("[1"), "generation_config.json: it cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_named_by_every_reader(proven, tmp_path, name):
    change, told = CHANGES[name]
    change(proven)
    assert gather_facts(proven).certificate.outcome == "changed"
    text = write_card(proven).read_text()
    assert "**verified**" not in text and "have changed since it was proven" in text and told in text
    found = inspect_folder(proven)["certificate"]
    assert (found["verdict"], found["recorded"]) == ("changed", "verified")
    assert any(line.startswith(told) for line in found["changes"])
    if name == "unreadable":
        with pytest.raises(ValueError, match=r"generation_config.json is not valid JSON"):
            bundle(proven, tmp_path / "hub")
        return
    card = (bundle(proven, tmp_path / "hub") / "README.md").read_text()
    assert "**verified**" not in card and told in card


def test_code_is_bound(proven, tmp_path):
    """Its own, as this release or the one that proved it wrote it; an edit in any file of it falls."""
    hub = bundle(proven, tmp_path / "hub")
    (hub / "train.py").write_text("print('of no concern')")
    assert gather_facts(hub).certificate.outcome == "verified"
    norms = (hub / "norms.py").read_text()
    (hub / "norms.py").write_text(norms.replace("self.variance_epsilon = eps", "self.variance_epsilon = 0.5"))
    told = "norms.py: not the code that was proven"
    assert gather_facts(hub).certificate.changes[0].startswith(told)
    assert "**verified**" not in write_card(hub).read_text()
    assert inspect_folder(hub)["certificate"]["verdict"] == "changed"
    assert (
        "**verified**" in (bundle(hub, tmp_path / "again") / "README.md").read_text()
    )  # which writes it anew


def test_code_of_the_release_that_proved_it_is_good(proven, tmp_path, monkeypatch):
    hub = bundle(proven, tmp_path / "hub")
    newer = {name: f"{text}# of a later release\n" for name, text in code_files().items()}
    monkeypatch.setattr("moeba.conversion.binding.code_files", lambda: newer)
    assert gather_facts(hub).certificate.outcome == "verified"
    (hub / "router.py").unlink()
    assert gather_facts(hub).certificate.outcome == "changed"


@pytest.mark.parametrize("is_moeba", [True, False])
def test_an_auto_map_of_others_is_no_proven_code(proven, is_moeba):
    record = json.loads((proven / "parity.json").read_text())
    record["target"]["code"] = proven_code(is_moeba)
    write_json(proven, "parity.json", record)
    edit(proven, "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert gather_facts(proven).certificate.changes == ("config.json: auto_map names other code",)


def test_a_generate_of_the_folders_own_is_seen_and_stays_behind(proven, tmp_path):
    (proven / "custom_generate").mkdir()
    (proven / "custom_generate" / "generate.py").write_text("def generate(model, **kwargs): ...")
    assert gather_facts(proven).certificate.changes == ("custom_generate/generate.py: it was added",)
    assert gather_facts(bundle(proven, tmp_path / "hub")).certificate.outcome == "verified"


def test_other_weights_fall_too(proven, tmp_path):
    change_weights(proven)
    assert gather_facts(proven).certificate.outcome == "other weights"
    assert inspect_folder(proven)["certificate"]["verdict"] == "other weights"
    assert "**verified**" not in (bundle(proven, tmp_path / "hub") / "README.md").read_text()


def test_what_tools_rewrite_changes_nothing(proven, tmp_path):
    values = json.loads((proven / "config.json").read_text())
    values |= {"transformers_version": "9.9", "auto_map": AUTO_MAP, "_name_or_path": "a/b"}
    write_code(proven)
    write_json(proven, "config.json", dict(reversed(values.items())) | {"use_cache": False})
    edit(proven, "generation_config.json", transformers_version="9.9")
    edit(proven, "tokenizer_config.json", name_or_path="somewhere")
    assert gather_facts(proven).certificate.outcome == "verified"
    assert inspect_folder(proven)["certificate"] == {
        "verdict": "verified",
        "recorded": "verified",
        "operation": "upcycle",
        "changes": [],
        "problem": None,
        "checked": ["config, generation settings and tokenizer", "weights by SHA-256"],
        "weights_not_read": 0,
    }
    text = (bundle(proven, tmp_path / "hub") / "README.md").read_text()
    assert "**verified**" in text and "bound the weights alone" not in text


def test_a_field_that_a_file_leaves_out_means_its_default(proven):
    bound = bind(proven)
    bound["config.json"]["attention_dropout"] = "0.0"
    values = json.loads((proven / "config.json").read_text())
    values.pop("attention_dropout", None)
    write_json(proven, "config.json", values)
    assert changes_since(proven, bound) == ()


def test_settings_that_are_no_object_are_bound_as_bytes(proven):
    (proven / "generation_config.json").write_text("[1]")
    bound = bind(proven)
    assert changes_since(proven, bound) == ()
    (proven / "generation_config.json").write_text("[2]")
    assert changes_since(proven, bound) == ("generation_config.json: it was changed",)


BROKEN = {
    "half a file": b'{"verdict": "verif',
    "no object": b'["verified"]',
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
    "a key twice": b'{"verdict": "failed", "verdict": "verified"}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_certificate_leaves_no_old_card_standing(proven, tmp_path, name):
    (proven / "parity.json").write_bytes(BROKEN[name])
    for card in (bundle(proven, tmp_path / "hub") / "README.md", write_card(proven)):
        text = card.read_text()
        assert "**verified**" not in text and "cannot be read, so nothing is proven" in text
        assert str(tmp_path) not in text
    assert inspect_folder(proven)["certificate"]["verdict"] == "unreadable"


def test_a_certificate_that_is_a_folder_or_a_lost_link(proven):
    (proven / "parity.json").unlink()
    (proven / "parity.json").mkdir()
    assert gather_facts(proven).certificate.outcome == "unreadable"
    (proven / "parity.json").rmdir()
    (proven / "parity.json").symlink_to(proven / "nowhere.json")
    assert gather_facts(proven).certificate.outcome == "unreadable"


def test_an_older_certificate_proves_the_weights_alone(proven):
    write_json(proven, "parity.json", certificate(proven))
    edit(proven, "config.json", norm_eps=0.5)
    assert gather_facts(proven).certificate.outcome == "verified"
    assert "bound the weights alone" in write_card(proven).read_text()
    assert inspect_folder(proven)["certificate"]["checked"] == ["weights by SHA-256"]


def test_a_verdict_that_its_own_checks_contradict(proven):
    record = json.loads((proven / "parity.json").read_text())
    record["checks"].append({"name": "gradient", "on": "checkpoint", "status": "failed", "figures": {}})
    write_json(proven, "parity.json", record)
    assert gather_facts(proven).certificate.outcome == "failed"


def test_weights_too_large_to_be_hashed_at_once(proven, monkeypatch):
    monkeypatch.setattr("moeba.cli.inspection.HASHED_AT_ONCE", 10)
    found = inspect_folder(proven)["certificate"]
    assert (found["verdict"], found["recorded"]) == ("unverified", "verified")
    assert found["weights_not_read"] == (proven / "model.safetensors").stat().st_size
    assert inspect_folder(proven, hash_all=True)["certificate"]["verdict"] == "verified"
    edit(proven, "config.json", norm_eps=0.5)
    assert inspect_folder(proven)["certificate"]["verdict"] == "changed"


def test_what_an_operation_writes_is_bound(tmp_path):
    from native import make

    from moeba import convert

    source = make(tmp_path / "native", "llama")
    convert(source, tmp_path / "moeba")
    facts = gather_facts(tmp_path / "moeba").certificate
    assert facts.is_bound and facts.outcome == "verified"

"""Well-known checkpoints: what their config.json says is converted, proven, and comes back at export."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import native
import pytest
from published import PUBLISHED, REFUSED
from shrinking import shrink
from transformers import CONFIG_MAPPING, PreTrainedConfig

from moeba import convert, export
from moeba.conversion import family_of
from moeba.conversion.config_differences import differences

TAKEN = [name for name in PUBLISHED if name not in REFUSED]
# One of each part that no other of them has.
SAMPLE = [
    "Qwen/Qwen3-Coder-30B-A3B-Instruct", "moonshotai/Moonlight-16B-A3B", "google/gemma-3-1b-it",
    "openai-community/gpt2", "microsoft/Phi-3.5-MoE-instruct", "MiniMaxAI/MiniMax-M2", "mosaicml/mpt-7b",
]  # fmt: skip
# Written anew, or said in the words of version 5.
ANEW = {
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "auto_map",
    "rope_parameters",
    "transformers_version",
}
# Of layers beside the model, which an export does not have.
FURTHER_LAYERS = {"num_mtp_layers": 0, "num_mtp_modules": 0, "num_nextn_predict_layers": 0, "use_mtp": False}


def as_read(raw: dict[str, Any]) -> PreTrainedConfig:
    return CONFIG_MAPPING[raw["model_type"]].from_dict(dict(raw))


def said_by(config: PreTrainedConfig) -> dict[str, Any]:
    return json.loads(config.to_json_string(use_diff=False))


def lost(raw: dict[str, Any], exported: dict[str, Any]) -> dict[str, Any]:
    """What a config.json says and the export of its model does not; by what the stock class makes of both."""
    before, after = as_read(raw), as_read(exported)
    expected = {
        name: FURTHER_LAYERS.get(name, getattr(before, name)) for name in raw if hasattr(before, name)
    }
    return {
        name: (value, getattr(after, name, None))
        for name, value in expected.items()
        if name not in ANEW and value is not None and getattr(after, name, None) != value
    }


@pytest.mark.parametrize("name", TAKEN)
def test_config_is_read_and_comes_back(name):
    raw = shrink(PUBLISHED[name])
    family = family_of(raw["model_type"])
    ours = family.take(raw)
    back = family.to_native(ours)
    assert not lost(raw, said_by(back))
    assert differences(ours, family.take(said_by(back))) == []


@pytest.mark.parametrize("name", TAKEN)
def test_published_sizes_are_taken(name):
    raw = PUBLISHED[name]
    ours = family_of(raw["model_type"]).take(raw)
    assert ours.native_fields is None or set(ours.native_fields) == {raw["model_type"]}


def published(name: str, folder: Path) -> Path:
    """A small checkpoint of random weights whose config.json is the published one, its sizes apart."""
    raw = shrink(PUBLISHED[name])
    stock = as_read({key: value for key, value in raw.items() if key != "quantization_config"})
    native.save(native.build(stock), folder)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def there_and_back(name: str, folder: Path) -> None:
    source = published(name, folder / "native")
    raw = json.loads((source / "config.json").read_text())
    family = family_of(raw["model_type"])
    result = convert(source, folder / "moeba")
    assert result.certificate.verdict == "verified"
    unread = family.not_read(raw)
    assert result.certificate.source.get("not_read", {}) == unread
    told = [note for note in result.plan.notes if "not read by" in note or "does not read" in note]
    assert [all(f"{key}=" in note for key in unread) for note in told] == [True] * bool(unread)
    back = export(folder / "moeba", folder / "back", to=raw["model_type"])
    assert back.certificate.verdict == "verified"
    assert not lost(raw, json.loads((folder / "back" / "config.json").read_text()))
    native.same_tensors(native.read_all(source), native.read_all(folder / "back"))


@pytest.mark.parametrize("name", SAMPLE)
def test_checkpoint_there_and_back(tmp_path, name):
    there_and_back(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TAKEN if name not in SAMPLE])
def test_every_checkpoint_there_and_back(tmp_path, name):
    there_and_back(name, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_says_why(tmp_path, name):
    source = published(name, tmp_path / "native")
    with pytest.raises(ValueError, match=REFUSED[name]):
        convert(source, tmp_path / "moeba")
    assert not (tmp_path / "moeba").exists()


def test_table_is_wide():
    families = {raw["model_type"] for raw in PUBLISHED.values()}
    assert len(TAKEN) >= 60 and len(families) >= 50
    assert not [name for name in REFUSED if not re.search(r"\w", REFUSED[name])]

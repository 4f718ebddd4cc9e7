"""`moeba push`: what it says, and that a dry run and a refusal reach for no Hub."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import HfApi


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """Nothing here may ask the Hub; tests/hub pushes for real."""
    monkeypatch.setattr(HfApi, "model_info", lambda *args, **kwargs: pytest.fail("the Hub was asked"))


def test_a_dry_run_lists_files_and_sizes(moeba, converted):
    said = moeba("push", converted, "me/model", "--dry-run")
    assert said.code == 0
    listed = dict(reversed(line.rsplit(maxsplit=1)) for line in said.out.splitlines())
    assert {"README.md", "config.json", "model.safetensors", "modeling_moeba.py"} < set(listed)
    assert all(size.split()[1] in ("bytes", "kB", "MB") for size in listed.values())
    assert "would go to me/model. Nothing was sent." in said.err
    plan = json.loads(moeba("push", converted, "me/model", "--dry-run", "--json").out)
    assert {file["path"] for file in plan["files"]} == set(listed) and plan["commit"] is None
    weights = next(file for file in plan["files"] if file["path"] == "model.safetensors")
    assert weights["size"] == (converted / "model.safetensors").stat().st_size


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_refusals_are_one_line(moeba, tmp_path, converted, words):
    said = moeba("push", tmp_path / "nowhere", "me/model", *words)
    assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
    said = moeba("push", converted, "me/model", "--pr", "--branch", "dev", *words)
    assert said.code == 1 and "leave one out" in said.err

"""The whole demo, with tiny settings: every proof holds, and a second run has nothing to do."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

from moeba.cli.app import run as command
from moeba.demo.run import run
from moeba.demo.settings import TINY
from moeba.demo.steps import STEPS


@pytest.mark.slow
def test_the_main_road(tmp_path, capsys):
    entries = run(tmp_path / "demo", TINY)
    assert [entry.name for entry in entries] == [step.name for step in STEPS]
    figures = {entry.name: entry.figures for entry in entries}

    llama, moe = figures["03-llama"], figures["06-moe-trained"]
    assert llama["perplexity_after"] < llama["perplexity_before"]
    for name in ("04-moeba", "05-moe", "09-mixtral"):
        assert figures[name]["verdict"] == "verified"
        assert figures[name]["planted_faults_caught"] == figures[name]["planted_faults"] > 0
    for name in ("04-moeba", "05-moe"):
        assert figures[name]["perplexity"] == pytest.approx(llama["perplexity_after"], rel=1e-5)
    for name in ("06-moe-trained", "07-dense-trained"):
        assert figures[name]["perplexity_before"] == pytest.approx(llama["perplexity_after"], rel=1e-5)
        assert figures[name]["steps"] == TINY.finetune_steps
    assert len(moe["max_load"]) == TINY.num_layers
    assert figures["09-mixtral"]["perplexity"] == pytest.approx(moe["perplexity_after"], rel=1e-5)
    assert figures["09-mixtral"]["class"].startswith("transformers.models.mixtral.")
    assert "README.md" in figures["10-hub"]["files"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "demo" / "10-hub")

    capsys.readouterr()
    assert command(["demo", "--tiny", "--folder", str(tmp_path / "demo"), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err.count("taken over") == len(STEPS)
    assert [entry["key"] for entry in json.loads(said.out)] == [entry.key for entry in entries]
    assert command(["demo", "--tiny", "--folder", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    assert all(entry.title in said for entry in entries)
    assert f"{moe['perplexity_after']:,.2f} with experts" in said


def test_a_folder_of_someone_else_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert command(["demo", "--tiny", "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1

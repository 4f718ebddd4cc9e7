"""A small native model, and the command line as a function."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moeba.cli.app import run
from moeba.tokenization import MoebaTokenizer

TEXTS = ["the cat sat on the mat and saw the dog", "a dog sat on a log and saw the cat"] * 4


@dataclass(frozen=True)
class Spoken:
    """What one command line said."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A native Llama folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tokenizer = MoebaTokenizer.train(TEXTS, 300, show_progress=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def moeba(capsys, monkeypatch):
    """`moeba("convert", source, destination)`: runs it and returns what it said."""
    monkeypatch.delenv("MOEBA_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def speak(*words):
        capsys.readouterr()
        code = run([str(word) for word in words])
        said = capsys.readouterr()
        return Spoken(code, said.out, said.err)

    yield speak
    monkeypatch.delenv("MOEBA_DEBUG", raising=False)


@pytest.fixture(scope="session")
def converted(llama, tmp_path_factory):
    """The same model as a Moeba folder."""
    folder = tmp_path_factory.mktemp("models") / "moeba"
    assert run(["convert", str(llama), str(folder)]) == 0
    return folder

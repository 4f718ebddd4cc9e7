"""Folders to measure: a native Llama, the same as Moeba, and a Moeba with experts, all with one tokenizer."""

from __future__ import annotations

import json

import pytest
from support import SPARSE, randomise, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from moeba import convert
from moeba.tokenization import MoebaTokenizer

TEXTS = ["the cat sat on the mat and saw the dog", "a dog sat on a log and saw the cat"] * 4
LONG = "the dog saw a cat, and the cat saw the dog: 12 naïve mats on 3 logs — 中文 😀. " * 6
SHORT = "a mat"


@pytest.fixture(scope="session")
def tokenizer():
    return MoebaTokenizer.train(TEXTS, 300, show_progress=False)


@pytest.fixture(scope="session")
def llama(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    randomise(LlamaForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def converted(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "moeba"
    convert(llama, folder, certificate=False)
    return folder


@pytest.fixture(scope="session")
def sparse(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "moe"
    tiny_model("moe", vocab_size=len(tokenizer), **SPARSE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tmp_path):
    """Three documents, one of them longer than any window and one empty."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in (LONG, SHORT, "")), encoding="utf-8")
    return path


@pytest.fixture
def quiz(tmp_path):
    """Questions whose choices have different lengths."""
    rows = [
        {"question": "the cat sat on", "choices": ["the mat", "a dog and a log", "中"], "answer": 0},
        {"question": "a dog saw", "choices": ["the cat", "the", "mat mat mat"], "answer": 2},
        {"question": "the dog:", "choices": ["cat", "log", "dog and the cat"], "answer": 1},
        {"question": "and", "choices": ["the naïve cat sat", "a", "on"], "answer": 1},
    ]
    path = tmp_path / "quiz.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path

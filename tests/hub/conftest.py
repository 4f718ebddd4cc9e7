"""A Hub on this machine, a client in a process of its own, and small real models to push."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub_client import TOKENS, Client
from loopback import LoopbackHub
from support import randomise

from moeba import MoebaConfig, MoebaForCausalLM, MoebaTokenizer


@pytest.fixture(scope="session")
def running_hub():
    with LoopbackHub(users=TOKENS) as hub:
        yield hub


@pytest.fixture
def hub(running_hub):
    running_hub.reset()
    return running_hub


@pytest.fixture(scope="session")
def client(running_hub, tmp_path_factory):
    client = Client(running_hub.url, tmp_path_factory.mktemp("client"))
    yield client
    client.process.stdin.close()
    client.process.wait(timeout=60)


@pytest.fixture(scope="session")
def moe_folder(tmp_path_factory) -> Path:
    """A mixture of experts in two shards, with a tokenizer and a file deep down."""
    folder = tmp_path_factory.mktemp("models") / "moe"
    tokenizer = MoebaTokenizer.train(["one two three four"] * 20, 265, show_progress=False)
    config = MoebaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_layer_types=["dense", "sparse"],
        max_position_embeddings=64,
    )
    randomise(MoebaForCausalLM(config)).save_pretrained(folder, max_shard_size="100kB")
    tokenizer.save_pretrained(folder)
    (folder / "figures" / "pages" / "deep").mkdir(parents=True)
    (folder / "figures" / "pages" / "deep" / "page.html").write_text("<p>seen</p>")
    return folder


@pytest.fixture
def moe(moe_folder, tmp_path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(moe_folder, tmp_path / "moe"))

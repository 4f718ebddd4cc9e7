"""`moeba serve`: transformers' own server finds Moeba's classes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import transformers
from transformers.utils.import_utils import is_serve_available

import moeba as package
from moeba.modeling.code_files import AUTO_MAP


def test_every_class_is_found_by_the_name_in_architectures():
    for reference in AUTO_MAP.values():
        name = reference.split(".")[1]
        if name != "MoebaConfig":
            assert getattr(transformers, name) is getattr(package, name)


def test_the_server_loads_a_folder(converted):
    from transformers.cli.serving.model_manager import ModelManager

    manager = ModelManager(device="cpu", dtype="auto")
    model, tokenizer = manager.load_model_and_processor(str(converted))
    assert type(model) is package.MoebaForCausalLM and tokenizer("the cat").input_ids


def test_options_are_handed_on(moeba, converted, monkeypatch):
    given = []
    monkeypatch.setattr("moeba.library.serving.transformers_serve", given.extend)
    said = moeba("serve", converted, "--port", "8123", "--continuous-batching")
    assert said.code == 0 and given == [str(converted), "--port", "8123", "--continuous-batching"]
    given.clear()
    assert moeba("serve", "nowhere", "--port", "8123").code == 1 and not given


@pytest.mark.skipif(is_serve_available(), reason="the server's libraries are installed")
def test_missing_libraries_are_named(moeba, converted):
    said = moeba("serve", converted)
    assert said.code == 1 and 'pip install "moeba[serve]"' in said.err


@pytest.mark.slow
@pytest.mark.skipif(not is_serve_available(), reason='needs `pip install "moeba[serve]"`')
def test_it_answers(converted):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ["serve", str(converted), "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(
        [sys.executable, "-m", "moeba", *words], env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    asked = {"model": str(converted), "prompt": "the cat", "max_tokens": 3}
    request = urllib.request.Request(
        f"http://localhost:{port}/v1/completions",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        answer = None
        while answer is None and server.poll() is None:
            try:
                answer = json.load(urllib.request.urlopen(request, timeout=100))
            except urllib.error.HTTPError:
                raise
            except OSError:
                time.sleep(0.5)
        assert answer is not None and answer["choices"][0]["text"]
    finally:
        server.terminate()
        server.wait(30)

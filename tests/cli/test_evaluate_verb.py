"""`moeba evaluate`: a table of figures and differences, JSON for scripts, and records in the folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from moeba.conversion.provenance import EVALUATION_FILE


def one_line(said):
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("Error: ")
    return said.err


TEXT = "the cat sat on the mat and saw the dog. " * 12


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def quiz(tmp_path):
    path = tmp_path / "quiz.jsonl"
    row = {"question": "the cat sat on", "choices": ["the mat", "a log"], "answer": 0}
    path.write_text("\n".join([json.dumps(row)] * 3))
    return path


def test_a_column_a_model_and_one_for_the_difference(moeba, llama, converted, text):
    said = moeba("evaluate", llama, converted, "--dataset", text, "--window", 32, "--stride", 8)
    assert said.code == 0
    lines = {line.split("  ")[0].strip(): line.split() for line in said.out.splitlines()}
    assert lines["perplexity"][-1] == lines["token accuracy"][-1] == "0"
    assert lines["perplexity"][1] == lines["perplexity"][2]
    assert lines["bytes"][1:] == [str(len(TEXT))] * 2 + ["0"]
    assert said.out.count("difference") == 1
    assert "book.txt, windows of 32 tokens, 8 predicted by each, float32 on cpu" in said.err


def test_a_difference_has_its_sign(moeba, llama, converted, tmp_path, text):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    other.mkdir()
    for path in converted.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 30
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    words = ["evaluate", llama, other, "--dataset", text]
    first, second = (found["metrics"]["perplexity"] for found in json.loads(moeba(*words, "--json").out))
    line = next(line for line in moeba(*words).out.splitlines() if line.startswith("perplexity"))
    assert first != second
    assert line.split()[-1] == f"{second - first:+.3g}"


def test_json_is_all_there_is_on_stdout(moeba, llama, quiz):
    fields = ["--prompt", "Go on:\\n{question}", "--choices", "choices", "--label", "answer"]
    said = moeba("evaluate", llama, "--dataset", quiz, *fields, "--json")
    (found,) = json.loads(said.out)
    assert (found["task"], found["counts"]["questions"]) == ("multiple-choice", 3)
    assert found["dataset"]["fields"]["prompt"] == "Go on:\n{question}"
    said = moeba("evaluate", llama, "--dataset", quiz, *fields)
    assert f"{found['metrics']['accuracy']:g} ± 0" in said.out  # all three questions are the same


def test_save_writes_into_every_folder_and_only_when_asked(moeba, llama, converted, text, tmp_path):
    folders = []
    for source in (llama, converted):
        folders.append(tmp_path / source.name)
        folders[-1].mkdir()
        for path in source.iterdir():
            if path.is_file():
                (folders[-1] / path.name).write_bytes(path.read_bytes())
    assert moeba("evaluate", *folders, "--dataset", text).code == 0
    assert not any((folder / EVALUATION_FILE).exists() for folder in folders)
    assert moeba("evaluate", *folders, "--dataset", text, "--save").code == 0
    assert all((folder / EVALUATION_FILE).is_file() for folder in folders)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "--dataset"),
        (["--dataset", "missing.txt"], 1, "missing.txt"),
        (["--dataset", "TEXT", "--window", "1"], 2, "--window"),
        (["--dataset", "TEXT", "--field", "body"], 1, "no field 'body'"),
        (["--dataset", "TEXT", "--prompt", "{text}"], 1, "belong together"),
        (["--dataset", "TEXT", "--dtype", "float8"], 1, "float8"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(moeba, llama, text, words, code, says):
    said = moeba("evaluate", llama, *(text if word == "TEXT" else word for word in words))
    assert said.code == code
    assert says in one_line(said)


def test_a_model_of_the_hub_has_no_folder_to_save_into(moeba, llama, text, monkeypatch):
    monkeypatch.setattr("moeba.evaluation.run.resolve", lambda name, any_type: llama)
    said = moeba("evaluate", "me/llama", "--dataset", text, "--save")
    assert said.code == 1
    assert "me/llama is a model of the Hub" in one_line(said)


def test_in_a_process_of_its_own(llama, text):
    command = [sys.executable, "-c", "from moeba.cli import main; main()", "evaluate", str(llama)]
    command += ["--dataset", str(text), "--max-tokens", "50"]
    environment = {**os.environ, "MOEBA_DEBUG": "0", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    assert done.stderr.splitlines() == [
        "book.txt, windows of 64 tokens, 32 predicted by each, float32 on cpu."
    ]

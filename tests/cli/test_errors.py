"""Whatever is wrong with a command line or its input is said in one line, with the exit code of its kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import moeba.conversion


def one_line(said):
    assert said.out == ""
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1 and said.err.endswith("\n")
    assert "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["convrt", "a", "b"], "convrt"),
        (["convert", "a", "b", "--overwrit"], "--overwrite"),
        (["convert", "a"], "DST"),
        (["upcycle", "a", "b", "--experts", "4"], "--top-k"),
        (["upcycle", "a", "b", "--experts", "four", "--top-k", "2"], "--experts"),
        (["generate", "a", "text", "--top-p", "2"], "--top-p"),
    ],
)
def test_a_wrong_command_line_exits_with_2(moeba, words, says):
    said = moeba(*words)
    assert said.code == 2
    assert says in one_line(said)


@pytest.mark.parametrize("verb", ["convert", "export", "bundle", "certify"])
def test_missing_folder(moeba, tmp_path, verb):
    said = moeba(verb, tmp_path / "nowhere", tmp_path / "new")
    assert said.code == 1
    assert "nowhere" in one_line(said)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["inspect", "card"])
def test_missing_folder_to_look_at(moeba, tmp_path, verb):
    said = moeba(verb, tmp_path / "nowhere")
    assert said.code == 1
    assert "nowhere" in one_line(said)


def test_missing_folder_to_generate_from(moeba, tmp_path):
    said = moeba("generate", tmp_path / "nowhere", "text")
    assert said.code == 1
    assert "nowhere" in one_line(said)


def test_unknown_family_lists_the_known_ones(moeba, converted, tmp_path):
    said = moeba("export", converted, tmp_path / "new", "--to", "lama")
    assert said.code == 1
    assert "'lama'" in one_line(said) and "llama" in said.err


def test_a_family_that_cannot_hold_the_model(moeba, converted, tmp_path):
    said = moeba("export", converted, tmp_path / "new", "--to", "mixtral")
    assert said.code == 1
    one_line(said)


def test_existing_destination(moeba, llama, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    for words in ([], ["--overwrite"]):
        said = moeba("convert", llama, tmp_path / "taken", *words)
        assert said.code == 1
        assert "taken" in one_line(said)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("layers", ["7", "every:0", "middle", "0,x", ""])
def test_layers_that_do_not_exist(moeba, converted, tmp_path, layers):
    said = moeba("upcycle", converted, tmp_path / "new", "--experts", 4, "--top-k", 2, "--layers", layers)
    assert said.code == 1
    one_line(said)


def test_a_missing_calibration_file(moeba, converted, tmp_path):
    words = ["--experts", 4, "--top-k", 2, "--router-init", "calibration"]
    said = moeba("upcycle", converted, tmp_path / "new", *words, "--calibration", tmp_path / "no.txt")
    assert said.code == 1
    assert "no.txt" in one_line(said)


@pytest.mark.parametrize(
    ("field", "words"), [({"hidden_size": "wide"}, []), ({"rms_norm_epsilon": 1e-6}, ["--strict"])]
)
def test_a_config_that_makes_no_sense(moeba, llama, tmp_path, field, words):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    config = json.loads((llama / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | field))
    said = moeba("convert", folder, tmp_path / "new", *words)
    assert said.code == 1
    assert next(iter(field)) in one_line(said)


def test_an_empty_prompt(moeba, llama):
    said = moeba("generate", llama, "")
    assert said.code == 1
    assert "prompt is empty" in one_line(said)


def test_a_fault_of_ours_is_owned_up_to(moeba, monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(moeba_conversion(), "convert", broken)
    said = moeba("convert", "a", tmp_path / "b")
    assert said.code == 1
    assert "RuntimeError: first line second line (a fault in Moeba" in one_line(said)


def test_an_interruption_is_no_fault(moeba, monkeypatch, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(moeba_conversion(), "convert", interrupted)
    said = moeba("convert", "a", tmp_path / "b")
    assert (said.code, said.out, said.err) == (130, "", "Interrupted.\n")


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_debug_shows_the_traceback(moeba, monkeypatch, tmp_path, place):
    words = ["convert", tmp_path / "nowhere", tmp_path / "new"]
    if place == "environment":
        monkeypatch.setenv("MOEBA_DEBUG", "1")
    else:
        monkeypatch.setenv("MOEBA_DEBUG", "0")  # so that what the run sets is undone after the test
        words = ["--debug", *words] if place == "before" else [*words, "--debug"]
    said = moeba(*words)
    assert said.code == 1
    assert "Traceback" in said.err
    assert said.err.splitlines()[-1].startswith("Error: ")


def test_the_process_exits_as_it_says(tmp_path):
    command = [
        sys.executable,
        "-c",
        "from moeba.cli import main; main()",
        "inspect",
        str(tmp_path / "nowhere"),
    ]
    environment = {**os.environ, "MOEBA_DEBUG": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1


def moeba_conversion():
    """The module, under a name that the fixture `moeba` does not hide."""
    return moeba.conversion


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\x1b[31m\nb \udcff"), "Error: a\\x1b[31m b \\udcff\n"),
        (ValueError("x" * 10**6), f"Error: {'x' * 1000} […] {'x' * 1000}\n"),
        (EOFError("short"), "Error: a file ends before its time: short\n"),
    ],
    ids=["names that steer a terminal", "endless", "the end of a file"],
)
def test_what_strangers_wrote_is_shown_and_no_more(moeba, monkeypatch, tmp_path, error, text):
    import moeba.conversion as conversion

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(conversion, "convert", fail)
    said = moeba("convert", "a", tmp_path / "b")
    assert (said.code, said.err) == (1, text)

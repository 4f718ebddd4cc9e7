"""Help, version and completion: at once, without the libraries that the verbs need."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from moeba.asked import is_the_command, only_asks
from moeba.cli.app import EXIT_CODES

HEAVY = ("torch", "transformers", "triton", "tokenizers", "safetensors", "huggingface_hub")
AFTER = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"


def command(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, which at last says which libraries it has loaded."""
    code = (
        f"import atexit, sys; sys.argv = ['moeba', *{list(words)!r}]; atexit.register(lambda: exec({AFTER!r}));"
        "from moeba_command import main; main()"
    )
    given = os.environ | {"COLUMNS": "200", "PYTHONPATH": os.getcwd()} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--help"], "upcycle"),
        (["merge", "-h"], "recipe"),
        (["--version"], "0."),
        ([], "convert"),
    ],
)
def test_help_loads_no_library(words, says):
    done = command(*words)
    assert says in done.stdout.lower()
    assert done.stderr.splitlines()[-1] == "[]"


def test_completion_loads_no_library():
    done = command(_MOEBA_COMPLETE="complete_bash", COMP_WORDS="moeba up", COMP_CWORD="1")
    assert done.stdout.split() == ["upcycle"]
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_package_runs_as_a_module():
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "moeba", "grow", "--help"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0 and "--times" in done.stdout
    assert "| torch\n" not in done.stderr and "| transformers\n" not in done.stderr


def test_exit_codes_are_told(moeba):
    for words in (["--help"], ["convert", "--help"]):
        said = " ".join(moeba(*words).out.split())
        assert all(f"{code}: {text}" in said for code, text in EXIT_CODES.items())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_has_a_script_for_each_shell(moeba, shell, monkeypatch):
    """Typer asks which shell started the process; here none may have."""
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    assert "_MOEBA_COMPLETE" in moeba("--show-completion", shell).out


def test_what_only_asks():
    assert only_asks([]) and only_asks(["convert", "-h"]) and only_asks(["--version"])
    assert not only_asks(["convert", "a", "b"]) and not only_asks(["generate", "m", "--", "--help"])


def test_another_program_that_imports_the_package_registers_it():
    assert is_the_command(["/usr/bin/moeba", "-h"], ["python", "/usr/bin/moeba", "-h"])
    assert is_the_command(["-m", "-h"], ["python", "-m", "moeba", "-h"])
    assert not is_the_command(["train.py", "-h"], ["python", "train.py", "-h"])
    assert not is_the_command(["-m", "-h"], ["python", "-m", "pytest", "-h"])
    assert not is_the_command(["-m", "moeba", "-h"], ["python", "-m", "pytest", "moeba", "-h"])
    assert not is_the_command([], [])


def test_a_mistyped_family_gets_the_nearest(moeba, converted, tmp_path):
    said = moeba("export", converted, tmp_path / "out", "--to", "mixtrall")
    assert said.code == 1 and "Nearest: mixtral" in said.err and "`moeba families`" in said.err
    assert len(said.err) < 200

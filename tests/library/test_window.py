"""The window: what lies inside, and what is said, in a fresh process, of a transformers that lies outside."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from moeba.library import window

# Read before anything else in a fresh process: the library that is asked about has another version, or none.
FAKE = """
import importlib.metadata as metadata
true = metadata.version

def version(name):
    found = {{{name!r}: {version!r}}}.get(name, True)
    if found is None:
        raise metadata.PackageNotFoundError(name)
    return true(name) if found is True else found

metadata.version = version
"""


@pytest.fixture
def python(tmp_path):
    """`python("code", "transformers", "5.22.2")`: a fresh process in which a library has that version."""

    def run(code, name, version):
        (tmp_path / "sitecustomize.py").write_text(FAKE.format(name=name, version=version))
        path = os.pathsep.join([str(tmp_path), os.getcwd(), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)

    return run


OUTSIDE = [("5.22.2", "5.22.2 is installed"), ("6.0.0", "6.0.0 is installed"), (None, "none is installed")]


@pytest.mark.parametrize(("version", "found"), OUTSIDE)
def test_import_refuses_what_lies_outside(python, version, found):
    code = (
        "import sys\ntry:\n    import moeba\nexcept ImportError as e:\n    print(e, 'torch' in sys.modules)"
    )
    done = python(code, "transformers", version)
    wanted = "transformers>=5.23.0,<6"
    assert done.stdout == f'Moeba needs {wanted}, {found}: pip install "{wanted}" False\n', done.stderr


@pytest.mark.parametrize(("version", "found"), OUTSIDE)
@pytest.mark.parametrize("verb", ["doctor", "convert"])
def test_the_command_says_it_in_one_line(python, verb, version, found):
    done = python(
        f"import sys; sys.argv = ['moeba', {verb!r}]; from moeba_command import main; main()",
        "transformers",
        version,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Moeba needs transformers>=5.23.0,<6, ") and found in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_debug_shows_where(python):
    code = "import sys; sys.argv = ['moeba', 'doctor', '--debug']; from moeba_command import main; main()"
    assert "Traceback" in python(code, "transformers", "6.0.0").stderr


def test_the_command_says_which_library_is_broken(python):
    code = "import sys; sys.modules['torch'] = None; from moeba_command import main; main()"
    done = python(code, "transformers", "5.23.0")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]  # transformers may speak before
    assert said.startswith("Error: ") and "Traceback" not in done.stderr
    assert "torch" in said.lower() and "pip install --upgrade moeba" in said


@pytest.mark.parametrize(
    ("version", "place"),
    [
        (None, "missing"),
        ("2.0.9", "older"),
        ("2.1.0rc1", "older"),
        ("2.1", "tested"),
        ("2.2.0+cpu", "tested"),
        ("2.2.7", "tested"),
        ("2.3.0.dev0", "newer"),
        ("3.0", "newer"),
    ],
)
def test_place(monkeypatch, version, place):
    monkeypatch.setitem(window.TESTED, "example", window.Tested("2.1.0", "2.2.1"))
    monkeypatch.setattr(window, "installed", lambda library: version)
    assert window.place("example") == place


def test_a_library_without_a_row_is_unlisted():
    assert "pytest" not in window.TESTED
    assert window.place("pytest") == "unlisted"
    assert window.requirement("pytest") == "pytest"


def test_requirement(monkeypatch):
    monkeypatch.setitem(window.TESTED, "example", window.Tested("2.1.0", "2.2.1"))
    assert window.requirement("example") == "example>=2.1.0"
    assert window.requirement("transformers") == "transformers>=5.23.0,<6"

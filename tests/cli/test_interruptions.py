"""What asks a program to stop is heeded as Ctrl-C is: work is cleaned up, one line is said, the exit code is 128+n."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import moeba.conversion
import moeba_command

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there are no such signals")
STOPPING = [
    ("SIGINT", 130, "Interrupted."),
    ("SIGTERM", 143, "Stopped by SIGTERM."),
    ("SIGHUP", 129, "Stopped by SIGHUP."),
]
CONVERSION = moeba.conversion  # under a name that the fixture `moeba` does not hide
# The command with a stand-in for the package, which gets a signal at a chosen moment.
STOPPED = """
import os, signal, sys, types

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "moeba.cli":
            os.kill(os.getpid(), signal.{name})

package = sys.modules["moeba"] = types.ModuleType("moeba")
package.__path__ = []
if "{moment}" == "while it imports":
    sys.meta_path.insert(0, Finder())
else:
    cli = sys.modules["moeba.cli"] = types.ModuleType("moeba.cli")
    cli.main = lambda: print(os.kill(os.getpid(), signal.{name}))
import moeba_command
moeba_command.main()
"""


@pytest.fixture
def heeded():
    """The signals as the command heeds them."""
    before = {number: signal.getsignal(number) for number in moeba_command.STOPPING}
    for (
        number
    ) in moeba_command.STOPPING:  # also where this process was told to ignore one, as in the background
        signal.signal(number, moeba_command.interrupt)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("name", "code", "text"), STOPPING)
def test_a_verb_that_is_stopped_cleans_up(moeba, monkeypatch, tmp_path, heeded, name, code, text):
    cleaned_up = []

    def stopped(*args, **kwargs):
        try:
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(60)
        finally:
            cleaned_up.append(name)

    monkeypatch.setattr(CONVERSION, "convert", stopped)
    said = moeba("convert", "a", tmp_path / "b")
    assert (said.code, said.out, said.err, cleaned_up) == (code, "", f"{text}\n", [name])


def test_a_conversion_that_is_stopped_is_continued(moeba, llama, tmp_path, heeded, monkeypatch):
    from moeba.conversion import writing

    put, calls = writing.put, []

    def stop(file, offset, data):
        put(file, offset, data)
        calls.append(offset)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    words = ("convert", llama, tmp_path / "out", "--no-certify", "--max-shard-size", "4KB")
    with monkeypatch.context() as patch:
        patch.setattr(writing, "put", stop)
        assert moeba(*words).code == 143
    assert not (tmp_path / "out").exists()
    said = moeba(*words)
    assert said.code == 0 and "kept from an interrupted run" in said.out


def in_a_process(tmp_path: Path, text: str) -> subprocess.CompletedProcess:
    (tmp_path / "script.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(Path(moeba_command.__file__).parent)}
    command = [sys.executable, str(tmp_path / "script.py")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("moment", ["while it imports", "while it works"])
@pytest.mark.parametrize(("name", "code", "text"), STOPPING)
def test_a_process_that_is_stopped_says_so_in_one_line(tmp_path, name, code, text, moment):
    # In the background, shells have a program ignore Ctrl-C.
    heeding = f"import signal\nsignal.signal(signal.{name}, signal.SIG_DFL)\n"
    done = in_a_process(tmp_path, heeding + STOPPED.format(name=name, moment=moment))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"{text}\n")


def test_what_was_to_be_ignored_is_ignored(tmp_path):
    """As by nohup."""
    ignoring = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    done = in_a_process(tmp_path, ignoring + STOPPED.format(name="SIGHUP", moment="while it works"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")


def test_a_thread_that_just_began_when_a_signal_came_is_no_news(monkeypatch):
    """Python reports on stderr that the exception met it in its own first lines."""
    told = []
    monkeypatch.setattr(sys, "__unraisablehook__", told.append)
    for received in ([], [signal.SIGINT]):
        monkeypatch.setattr(moeba_command, "received", received)
        moeba_command._unless_stopped(received)
    assert told == [[]]

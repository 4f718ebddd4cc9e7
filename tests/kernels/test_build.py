"""Compiling the kernels: once, kept, and never a reason to fail."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from expert_layers import difference, make_inputs, make_layer

from moeba.kernels import cpu
from moeba.kernels.cpu import build, calls
from moeba.kernels.layer import layer_of

ROOT = Path(build.__file__).parents[3]
# Two layers in a process of its own, logging as it does by default: saves an output, prints which path ran.
SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from expert_layers import make_inputs, make_layer
from moeba.kernels import composed, cpu, register_experts
register_experts()
ran = []
for name, module in (("cpu", cpu), ("composed", composed)):
    def run(*given, name=name, inner=module.run):
        ran.append(name)
        return inner(*given)
    module.run = run
for bias in (False, True):  # of two classes
    torch.save(make_layer(bias=bias)(*make_inputs(20, 2)[:3]).detach(), sys.argv[1])
print(*ran)
"""


def fresh(tmp_path: Path, root: Path = ROOT, **environment: str) -> tuple[torch.Tensor, str, str]:
    """Output, paths that ran, and log of a new process."""
    script = SCRIPT.format(root=str(root), tests=str(Path(__file__).parent))
    home = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "MOEBA_CACHE") if key in os.environ}
    kept.setdefault("MOEBA_CACHE", str(build.cache_folder()))
    output = tmp_path / "output.pt"
    done = subprocess.run(
        [sys.executable, "-c", script, str(output)],
        env={**kept, **home, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(output), done.stdout.strip(), done.stderr


@pytest.fixture
def wanted(only):
    only("cpu")
    with torch.no_grad():
        return make_layer(bias=True)(*make_inputs(20, 2)[:3])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, and one small program in place of the kernels: what is tested is the building."""
    if isinstance(why := build.library(), str):
        pytest.skip(why)
    source = tmp_path / "source"
    source.mkdir()
    names = set(re.findall(r"\bmoeba_\w+(?=\()", (build.SOURCE / "experts.cpp").read_text(encoding="utf-8")))
    functions = "".join(f"int {name}(const void*) {{ return 0; }}\n" for name in sorted(names))
    (source / "experts.cpp").write_text(f'extern "C" {{ {functions} }}')
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("MOEBA_CACHE", str(tmp_path / "cache"))
    build.library.cache_clear()
    yield tmp_path / "cache"
    build.library.cache_clear()


# ---- machines without ----

WITHOUT = {
    "switched off": (dict(MOEBA_CPU_KERNELS="0"), "MOEBA_CPU_KERNELS=0"),
    "no compiler": (dict(PATH="", CXX=""), "no C++ compiler"),
    "a compiler that fails": (dict(PATH="", CXX="/bin/false"), "/bin/false failed"),
    "a cache nobody can make": (dict(MOEBA_CACHE="/dev/null/cache"), "/dev/null"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_stands_in_the_way(name, only, wanted, monkeypatch):
    environment, reason = WITHOUT[name]
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    kernels, composed = only("cpu", "composed")
    build.library.cache_clear()
    try:
        with torch.no_grad():
            output = make_layer(bias=True)(*make_inputs(20, 2)[:3])
    finally:
        build.library.cache_clear()
    assert (kernels.runs, composed.runs) == (0, 1) and reason in kernels.reasons[0]
    assert difference(output, wanted) < 2e-6


@pytest.mark.parametrize(
    "name",
    [
        "no compiler",
        *(pytest.param(name, marks=pytest.mark.slow) for name in WITHOUT if name != "no compiler"),
    ],
)
def test_machines_without_kernels(name, tmp_path, wanted):
    """A new process: the same numbers, and the reason once among the warnings, unless it was meant."""
    environment, reason = WITHOUT[name]
    output, ran, log = fresh(tmp_path, **environment)
    assert ran == "composed composed"
    assert difference(output, wanted) < 2e-6
    if "MOEBA_CPU_KERNELS" in environment:
        assert not log
    else:
        check_said_once(log, reason)


def check_said_once(log: str, reason: str) -> None:
    assert log.count("not run") == log.count(reason) == 1, log
    assert "Experts run through PyTorch" in log and "Traceback" not in log


def test_an_installation_without_sources(tmp_path, wanted):
    shutil.copytree(
        ROOT / "moeba", tmp_path / "root" / "moeba", ignore=shutil.ignore_patterns("source", "__pycache__")
    )
    output, ran, log = fresh(tmp_path, tmp_path / "root")
    assert ran == "composed composed"
    assert difference(output, wanted) < 2e-6
    check_said_once(log, "sources are not in this installation")


@pytest.mark.slow
def test_a_fresh_machine(tmp_path, wanted):
    """The whole of it: compiled into an empty home folder, found there by the next process."""
    cache = tmp_path / "cache"
    made = []
    for _ in range(2):
        output, ran, _ = fresh(tmp_path, MOEBA_CACHE=str(cache))
        assert ran == "cpu cpu" and difference(output, wanted) < 2e-6
        made.append([(path.name, path.stat().st_mtime_ns) for path in library_files(cache)])
    assert len(made[0]) == 1 and made[0] == made[1]


# ---- the cache ----


def library_files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_library_is_built_once(folder, monkeypatch):
    assert not isinstance(build.library(), str)
    (made,) = library_files(folder)
    before = made.stat().st_mtime_ns
    build.library.cache_clear()
    assert not isinstance(build.library(), str)
    assert [path.stat().st_mtime_ns for path in library_files(folder)] == [before]


def test_the_name_follows_flags_source_and_compiler(folder, monkeypatch):
    build.library()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    build.library.cache_clear()
    build.library()
    assert len(library_files(folder)) == 2
    (build.SOURCE / "more.h").write_text("// another text\n")
    build.library.cache_clear()
    build.library()
    assert len(library_files(folder)) == 3
    plain = build._run
    monkeypatch.setattr(
        build, "_run", lambda command: plain(command) + ("#define __AVX1024F__" if "-dM" in command else "")
    )
    build.library.cache_clear()
    build.library()
    assert len(library_files(folder)) == 4


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF" + bytes(100)])
def test_a_damaged_library_is_no_reason_to_fail(content, folder):
    build.library()
    (made,) = library_files(folder)
    made.unlink()  # a library that is loaded must not be written over
    made.write_bytes(content)
    build.library.cache_clear()
    answer = build.library()
    assert not isinstance(answer, str) or made.name in answer


def test_a_library_of_something_else_is_no_reason_to_fail(folder):
    """One that loads but lacks the functions, as a mix-up of names would leave."""
    (build.SOURCE / "experts.cpp").write_text("int nothing;")
    answer = build.library()
    assert isinstance(answer, str) and "moeba_" in answer


def test_a_folder_that_cannot_be_written(folder, monkeypatch):
    folder.mkdir()
    if os.geteuid() == 0:  # root writes anywhere: stand in for the refusal
        monkeypatch.setattr(build.tempfile, "TemporaryDirectory", refuse)
    else:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    answer = build.library()
    assert isinstance(answer, str) and "ermission" in answer


def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_an_interrupted_build_leaves_nothing(folder, monkeypatch):
    plain = build._run

    def interrupted(command):
        if "-o" in command:
            Path(command[-1]).write_bytes(b"half of it")
            raise KeyboardInterrupt
        return plain(command)

    monkeypatch.setattr(build, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.library()
    assert library_files(folder) == []
    monkeypatch.setattr(build, "_run", plain)
    assert not isinstance(build.library(), str)


def test_a_source_that_does_not_compile_says_so(folder):
    (build.SOURCE / "experts.cpp").write_text("int main( {")
    answer = build.library()
    assert isinstance(answer, str) and "failed" in answer and "error" in answer
    assert library_files(folder) == []


def test_without_the_headers_of_pytorch_the_rest_is_compiled(folder, monkeypatch):
    monkeypatch.setattr(build, "_torch_flags", lambda: ["-lno_such_library"])
    assert not isinstance(build.library(), str)
    assert len(library_files(folder)) == 1


def test_a_compiler_that_hangs_is_given_up(folder, monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("g++", 300)

    monkeypatch.setattr(build.subprocess, "run", hang)
    assert isinstance(build.library(), str)


def test_two_processes_build_at_once(folder):
    """Both find an empty folder, both compile, and both end with a whole library under the one name."""
    code = (
        "import importlib.util, pathlib\n"
        f"spec = importlib.util.spec_from_file_location('build', {build.__file__!r})\n"
        "build = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(build)\n"
        f"build.SOURCE = pathlib.Path({str(build.SOURCE)!r})\n"
        "assert not isinstance(build.library(), str), build.library()\n"
    )
    environment = {**os.environ, "MOEBA_CACHE": str(folder)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    (made,) = library_files(folder)
    assert made.suffix == ".so"


def test_the_caches_place(monkeypatch):
    monkeypatch.delenv("MOEBA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert build.cache_folder() == Path("/somewhere/moeba")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/one")
    assert build.cache_folder() == Path("/home/one/.cache/moeba")
    monkeypatch.setenv("MOEBA_CACHE", "/mine")
    assert build.cache_folder() == Path("/mine")


def test_arguments_are_laid_out_alike_on_both_sides():
    if isinstance(kernels := build.library(), str):
        pytest.skip(kernels)
    assert ctypes.sizeof(calls.Problem) == kernels.moeba_size_of_problem()


def test_the_reason_is_said_for_a_layer(monkeypatch):
    monkeypatch.setattr("moeba.kernels.cpu.function.library", lambda: "no C++ compiler")
    assert cpu.obstacle(layer_of(make_layer()), torch.zeros(1, 33)) == "no C++ compiler"

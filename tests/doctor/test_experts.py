"""Which experts run, whether the kernels can be had, and what to do where they cannot."""

from __future__ import annotations

import pytest

from moeba.doctor import experts
from moeba.kernels.cpu import build


@pytest.fixture
def unbuilt(monkeypatch):
    """The kernels are looked for anew, and forgotten again afterwards."""
    build.library.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    build.library.cache_clear()


def test_the_default_is_run_and_compared():
    report = experts.examine_experts()
    assert report.failed is None
    assert set(report.differences) == {report.default, "moeba"}
    assert all(value <= experts.CLOSE for value in report.differences.values())
    assert (report.library is None) == ("C++ kernels" in report.obstacles)


def test_without_a_compiler(unbuilt, tmp_path):
    unbuilt.setenv("PATH", str(tmp_path))
    unbuilt.delenv("CXX", raising=False)
    report = experts.examine_experts()
    assert (report.library, report.failed) == (None, None)
    assert report.runs == "grouped products of PyTorch"
    assert "no C++ compiler" in report.obstacles["C++ kernels"]
    assert report.to_do.startswith("install a C++ compiler") and "MOEBA_CPU_KERNELS=0" in report.to_do
    assert any("no C++ compiler" in line for line in report.lines())


def test_a_compiler_that_fails(unbuilt, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    compiler.chmod(0o755)
    unbuilt.setenv("CXX", str(compiler))
    report = experts.examine_experts()
    assert report.runs == "grouped products of PyTorch"
    assert "do not compile" in report.to_do and "it is broken" in report.to_do and "\n" not in report.to_do


def test_kernels_that_are_switched_off_are_no_fault(unbuilt):
    unbuilt.setenv("MOEBA_CPU_KERNELS", "0")
    report = experts.examine_experts()
    assert (report.to_do, report.failed) == (None, None)
    assert report.obstacles == {"C++ kernels": "MOEBA_CPU_KERNELS=0"}


def test_wrong_kernels_are_noticed(monkeypatch):
    true = experts._logits
    monkeypatch.setattr(
        experts, "_logits", lambda model, name, ids: true(model, name, ids) + (0.1 if name == "moeba" else 0)
    )
    assert experts.examine_experts().failed == "moeba: not what the plain experts compute"


def test_whatever_breaks_is_a_finding(monkeypatch):
    def fails():
        raise RuntimeError("the driver\nis gone")

    monkeypatch.setattr(experts, "_model", fails)
    assert experts.examine_experts().failed == "RuntimeError: the driver is gone"

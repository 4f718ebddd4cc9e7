"""The machine is described on every system, also where nothing can be found out."""

from __future__ import annotations

import subprocess

import pytest

from moeba.doctor import machine

X86 = "processor: 0\nmodel name\t: AMD EPYC 9554\nflags\t\t: fpu sse avx avx2 avx512f amx_bf16 nonsense\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp sve bf16 i8mm\n"
SYSCTL = {
    "apple": "machdep.cpu.brand_string: Apple M3\nhw.optional.neon: 1\nhw.optional.arm.FEAT_BF16: 1\n"
    "hw.optional.arm.FEAT_SME: 0\n",
    "intel": "machdep.cpu.features: FPU AVX1.0 FMA\nmachdep.cpu.leaf7_features: AVX2\n",
}


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (X86, "AMD EPYC 9554", ["avx", "avx2", "avx512f", "amx_bf16"]),
        (ARM, None, ["asimd", "asimddp", "i8mm", "bf16", "sve"]),
    ],
)
def test_linux(monkeypatch, text, name, features):
    monkeypatch.setattr(machine, "_cpuinfo", lambda: text)
    monkeypatch.setattr(machine, "_answer", lambda *command: None)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    assert (machine.processor(), machine.features()) == (name, features)


@pytest.mark.parametrize(
    ("system", "features"), [("apple", ["neon", "bf16"]), ("intel", ["avx", "avx2", "fma"])]
)
def test_macos(monkeypatch, system, features):
    monkeypatch.setattr(machine, "_cpuinfo", lambda: "")
    monkeypatch.setattr(
        machine, "_answer", lambda *command: "Apple M3" if "-n" in command else SYSCTL[system]
    )
    assert (machine.processor(), machine.features()) == ("Apple M3", features)


def test_a_system_of_which_nothing_is_known(monkeypatch):
    def fails(*arguments, **words):
        raise OSError("no such thing here")

    for module, name in ((machine.Path, "read_text"), (subprocess, "run"), (machine.platform, "platform"),
                         (machine.torch.accelerator, "is_available"), (machine.platform, "processor")):  # fmt: skip
        monkeypatch.setattr(module, name, fails)
    facts = machine.machine()
    assert facts["accelerators"] is None and facts["system"] is None and facts["features"] == []
    assert len(machine.lines(facts)) == 7


def test_a_cuda_device(monkeypatch):
    class Properties:
        name, major, minor, total_memory = "NVIDIA H100", 9, 0, 80 * 2**30

    monkeypatch.setattr(machine.torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(machine.torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(
        machine.torch.accelerator, "current_accelerator", lambda: machine.torch.device("cuda")
    )
    monkeypatch.setattr(machine.torch.cuda, "get_device_properties", lambda index: Properties)
    (device,) = machine.accelerators()
    assert (device["name"], device["compute_capability"], device["memory_gib"]) == (
        "NVIDIA H100",
        "9.0",
        80.0,
    )
    assert "cuda:0 NVIDIA H100" in " ".join(machine.lines(machine.machine()))


def test_only_known_settings_are_read(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    facts = machine.machine()
    assert facts["settings"]["ATEN_CPU_CAPABILITY"] == "avx2"
    assert "hf_secret" not in str(facts)


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert machine.compiler_version() is None

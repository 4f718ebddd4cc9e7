"""The machine as far as results and speed depend on it: processor, compiler, accelerator, settings.

Whatever cannot be found out is None, on any system: a doctor must not fall ill.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..kernels.cpu.build import NoLibraryError, compiler

# Of the processor's features, those that libraries or compilers choose code by.
FEATURES = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "neon", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
# Settings that change what runs; no other variable of the environment is read.
SETTINGS = (
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET", "MOEBA_CPU_KERNELS", "MOEBA_CACHE", "CXX", "HF_HUB_OFFLINE",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """All of it as one table."""
    looks: dict[str, Callable[[], Any]] = {
        "system": platform.platform,
        "architecture": platform.machine,
        "processor": processor,
        "cores": os.cpu_count,
        "threads": torch.get_num_threads,
        "features": features,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability,
        "compiler": compiler_version,
        "accelerators": accelerators,
        "settings": lambda: {name: os.environ[name] for name in SETTINGS if name in os.environ},
    }
    return {name: _found(look) for name, look in looks.items()}


def _found(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except Exception:  # of a driver, a library or a system that nobody here has seen
        return None


def processor() -> str | None:
    """The processor's name, as its maker calls it."""
    named = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    if named:
        return named[1].strip()
    return _answer("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or None


def features() -> list[str]:
    """The names in `FEATURES` that this processor has, as far as the system tells."""
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    if listed:
        found = set(listed[1].split())
    else:  # macOS: `hw.optional.arm.FEAT_BF16: 1` on ARM, one line of names on Intel
        lines = (_answer("sysctl", "-a") or "").splitlines()
        arm = {
            name.removeprefix("hw.optional.").removeprefix("arm.").removeprefix("FEAT_").lower()
            for name, _, value in (line.partition(": ") for line in lines)
            if name.startswith("hw.optional.") and value == "1"
        }
        intel = (line.partition(": ")[2] for line in lines if re.match(r"machdep\.cpu\.\w*features:", line))
        found = arm | {_linux_name(word) for line in intel for word in line.split()}
    return [name for name in FEATURES if name in found]


def _linux_name(word: str) -> str:
    """`AVX1.0` and the like in the words of Linux."""
    return {"AVX1.0": "avx"}.get(word, word.lower())


def compiler_version() -> dict[str, str] | None:
    """Which C++ compiler the experts kernels would be made with."""
    try:
        path = compiler()
    except NoLibraryError:
        return None
    first = (_answer(path, "--version") or "").splitlines()[:1]
    return {"path": path, "version": first[0] if first else "it does not say"}


def accelerators() -> list[dict[str, Any]]:
    """Each device that PyTorch computes on beside the processor."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        return []
    return [
        {"type": found.type, "index": i, **_facts(found.type, i)}
        for i in range(torch.accelerator.device_count())
    ]


def _facts(kind: str, index: int) -> dict[str, Any]:
    if kind != "cuda":
        return {}
    found = torch.cuda.get_device_properties(index)
    return {
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "memory_gib": round(found.total_memory / 2**30, 1),
        "runtime": f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}",
    }


def _cpuinfo() -> str:
    """What Linux says of the processor; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _answer(*command: str) -> str | None:
    """What a program prints, or None where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def lines(facts: dict[str, Any]) -> list[str]:
    """The table for a person."""
    made, settings = facts["compiler"], facts["settings"] or {}
    devices = [
        f"{item['type']}:{item['index']} {item.get('name', '')}" for item in facts["accelerators"] or ()
    ]
    rows = {
        "system": f"{facts['system']} ({facts['architecture']})",
        "processor": f"{facts['processor'] or 'unknown'}, {facts['cores']} cores, {facts['threads']} threads",
        "features": " ".join(facts["features"] or ()) or "none known",
        "torch uses": facts["torch_cpu_capability"],
        "compiler": f"{made['version']} ({made['path']})" if made else "none",
        "accelerator": ", ".join(devices) or "none",
        "settings": ", ".join(f"{name}={value}" for name, value in settings.items()) or "none",
    }
    return [f"{name:<16} {value}" for name, value in rows.items()]

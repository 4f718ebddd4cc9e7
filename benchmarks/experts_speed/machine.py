"""What the measurements ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import transformers

FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)
CPU_INFO = Path("/proc/cpuinfo")


def describe(device: str) -> str:
    """One paragraph: processor or card, instructions, threads, versions."""
    words = [f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    found = cpu_flags()
    if found:
        words.append(
            f"{', '.join(flag for flag in FLAGS if flag in found) or 'no vector flags known here'}; "
            f"{'' if found & {'amx_bf16', 'avx512_bf16', 'bf16'} else 'no '}bf16 instructions"
        )
    words.append(f"last-level cache {last_level_cache() / 2**20:.0f} MB")
    if device == "cuda":
        words.insert(0, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    words.append(f"Python {platform.python_version()}, torch {torch.__version__}")
    words.append(f"transformers {transformers.__version__}")
    return ", ".join(words)


def processor() -> str:
    names = [line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")]
    return f"{platform.machine()} {names[0] if names else ''}".strip()


def cpu_flags() -> set[str]:
    for line in cpu_lines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":")[1].split())
    return set()


def cpu_lines() -> list[str]:
    return CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MB where the system does not tell."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [
        int(text[:-1]) * units[text[-1]]
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := path.read_text().strip())[-1:] in units
    ]
    return max(sizes, default=32 * 2**20)


def load() -> float:
    """Processes that want to run, over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")

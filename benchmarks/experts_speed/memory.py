"""Peak memory of a training step of one experts layer.

On a CPU in a process of its own, by the kernel's count: resident pages before the step, and their peak during it
(VmHWM, set back just before). Memory comes from mmap there and goes back at once, so that what one implementation
left does not hide what the next one needs. On a card by the allocator's peak.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch

import moeba
from moeba.kernels import release_memory

from .contenders import implementations, obstacle
from .layer import layer_call, routes_of
from .models import SHAPES, build_model, experts_of
from .timing import Call

TOKENS = 1024


@dataclass(frozen=True)
class Usage:
    """Bytes above what was held before the step."""

    model: str
    dtype: str
    name: str
    peak: int  # gradients of weights included
    gradients: int  # of weights, once each

    @property
    def activations(self) -> int:
        """The peak without the gradients that a step must leave."""
        return max(0, self.peak - self.gradients)


def available(device: str) -> bool:
    return device == "cuda" or Path("/proc/self/clear_refs").exists()


def measure_memory(
    size: str, models: Sequence[str], dtypes: Sequence[str], device: str, part: str = "memory"
) -> list[Usage]:
    """By the function `usages` of a module of this folder: this one's, or that of `adapters`."""
    if device == "cuda":
        return import_module(f"{__package__}.{part}").usages(size, models, dtypes, device)
    given = json.dumps({"size": size, "models": list(models), "dtypes": list(dtypes), "device": device})
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "PYTHONPATH": os.pathsep.join(str(Path(file).parents[1]) for file in (__file__, moeba.__file__)),
    }
    program = (
        "import json, sys\n"
        "from dataclasses import asdict\n"
        f"from {__package__}.{part} import usages\n"
        "print(json.dumps([asdict(usage) for usage in usages(**json.loads(sys.argv[1]))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, given], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"measuring memory failed:\n{done.stderr[-2000:]}")
    return [Usage(**usage) for usage in json.loads(done.stdout.splitlines()[-1])]


def usages(size: str, models: Sequence[str], dtypes: Sequence[str], device: str) -> list[Usage]:
    found = []
    for model_type in models:
        # Two layers, of which one may be dense.
        model = build_model(model_type, replace(SHAPES[size][model_type], layers=2), device)
        for dtype in dtypes:
            model.to(getattr(torch, dtype))
            for name in implementations():
                usage = usage_of(model, model_type, dtype, name, device)
                if usage is not None:
                    found.append(usage)
    return found


def usage_of(model: torch.nn.Module, model_type: str, dtype: str, name: str, device: str) -> Usage | None:
    """None where the implementation does not run."""
    experts = experts_of(model)[:1]
    routes = routes_of(model, TOKENS)[:1]
    if obstacle(name, experts, routes, training=True):
        return None
    call = layer_call(model, name, experts, routes, training=True)
    small = layer_call(model, name, experts, routes_of(model, 8)[:1], training=True)
    peak = peak_of(small, call, device, f"{model_type} {dtype} {name}")
    gradients = sum(parameter.nbytes for module in experts for parameter in module.parameters())
    model.zero_grad(set_to_none=True)
    return None if peak is None else Usage(model_type, dtype, name, peak, gradients)


def peak_of(small: Call, call: Call, device: str, words: str) -> int | None:
    """Bytes above what was held before `call`; `small` loads or compiles before it whatever is loaded once.

    None, and why on stderr, where it does not run.
    """
    try:
        small.prepare()
        small.run()
        call.prepare()
        before = start(device)
        result = call.run()
        peak = peak_bytes(device) - before
        del result
    except Exception as error:
        print(f"{words}: {error}", file=sys.stderr)
        return None
    call.prepare()  # frees its gradients
    return peak


def start(device: str) -> int:
    """Forget the peak; what is held now."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    release_memory()  # or what moeba keeps from the last step would count as held before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak_bytes(device: str) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM")


def resident(field: str) -> int:
    """From /proc/self/status, which counts in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

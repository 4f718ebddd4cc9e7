"""A program that compiles Triton's kernels for a GPU that need not be there, and reports what each takes.

Every launch of a forward and a backward is turned into a compilation, with the constants, types and alignments that
the launch would have; the tensors have shapes but no memory. Prints one line of JSON a kernel.

    python triton_compile.py [--all-shapes] [--arch 90] [CASE …]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import jit

from moeba.kernels.gates import Gate
from moeba.kernels.gpu import tuning
from moeba.kernels.gpu.backward import Wanted, backward
from moeba.kernels.gpu.forward import forward
from moeba.kernels.gpu.operands import Operands

HALF, FULL = torch.bfloat16, torch.float32
SILU, CLAMPED = Gate("silu"), Gate("clamped", True, True, 1.702, 7.0)

# tokens, top_k, experts, hidden, width, dtype, gate; then transposed, biased, hidden's dtype.
CASES: dict[str, tuple[Any, ...]] = {
    "one_token": (1, 8, 128, 2048, 768, HALF, SILU),
    "rows_16": (64, 8, 128, 2048, 768, HALF, SILU),
    "rows_32": (512, 8, 128, 2048, 768, HALF, SILU),
    "rows_64": (2048, 8, 128, 2048, 768, HALF, SILU),
    "rows_128": (8192, 8, 128, 2048, 768, HALF, SILU),
    "gpt_oss": (8192, 4, 32, 2880, 2880, HALF, CLAMPED, True, True),
    "gpt_oss_one_token": (1, 4, 32, 2880, 2880, HALF, CLAMPED, True, True),
    "stacked": (4096, 2, 8, 4096, 14336, HALF, SILU, True),
    "ungated": (4096, 2, 8, 1024, 4096, torch.float16, Gate("gelu", gated=False), False, True),
    "float32": (4096, 8, 64, 512, 256, FULL, Gate("gelu_tanh")),
    "float32_rows_16": (64, 8, 64, 512, 256, FULL, Gate("relu")),
    "float32_rows_32": (256, 8, 64, 512, 256, FULL, Gate("relu2")),
    "float32_rows_64": (1024, 8, 64, 512, 256, FULL, Gate("limited_silu", limit=7.0)),
    "mixed": (4096, 8, 64, 2048, 768, HALF, SILU, False, False, FULL),
    "odd": (4096, 3, 7, 100, 77, HALF, SILU, True, True),
    "one_expert": (300, 1, 1, 64, 64, HALF, SILU),
}


class Compiler:
    """Takes the place of a launch."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)
        self.backend = make_backend(self.target)
        self.case = ""
        self.done: set[tuple[str, ...]] = set()

    def compile(self, kernel: Any, arguments: tuple[Any, ...], words: dict[str, Any]) -> None:
        """Compile as a launch with these arguments would."""
        words |= dict(debug=False, instrumentation_mode="")
        binder = jit.create_function_from_signature(kernel.signature, kernel.params, self.backend)
        bound, specialization, options = binder(*arguments, **words)
        key = (kernel.__name__, str(specialization), str(options))
        if key in self.done:
            return
        self.done.add(key)
        options, signature, constants, attributes = kernel._pack_args(
            self.backend, words, bound, specialization, options
        )
        source = ASTSource(kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=self.target, options=options.__dict__)
        print(json.dumps(self.report(kernel.__name__, words, options, compiled)), flush=True)

    def report(self, name: str, words: dict[str, Any], options: Any, compiled: Any) -> dict[str, Any]:
        registers, stack = resources(compiled.asm["cubin"])
        assembly = compiled.asm["ptx"]
        return {
            "case": self.case,
            "kernel": name,
            "blocks": {key: value for key, value in words.items() if key.startswith("BLOCK")},
            "warps": options.num_warps,
            "stages": options.num_stages,
            "registers": registers,
            "stack": stack,
            "shared": compiled.metadata.shared,
            "wgmma": assembly.count("wgmma.mma_async"),
            "mma": assembly.count("mma.sync"),
            "copies": assembly.count("cp.async.c"),
        }


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack, which is where spilled registers go."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [str(tool), "--dump-resource-usage", file.name]
        found = re.search(
            r"REG:(\d+) STACK:(\d+)", subprocess.run(words, capture_output=True, text=True).stdout
        )
    return int(found[1]), int(found[2])


def run(
    tokens: int,
    top_k: int,
    experts: int,
    hidden: int,
    width: int,
    dtype: torch.dtype,
    gate: Gate,
    transposed: bool = False,
    biased: bool = False,
    hidden_dtype: torch.dtype | None = None,
) -> None:
    """A forward, and with more than one token a backward."""

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows = 2 * width if gate.gated else width
    operands = Operands(
        tensor(tokens, hidden, dtype=hidden_dtype or dtype),
        tensor(tokens, top_k, dtype=torch.int64),
        tensor(tokens, top_k),
        tensor(experts, hidden, rows) if transposed else tensor(experts, rows, hidden),
        tensor(experts, rows) if biased else None,
        tensor(experts, width, hidden) if transposed else tensor(experts, hidden, width),
        tensor(experts, hidden) if biased else None,
        gate,
        transposed,
    )
    if tokens == 1:
        forward(operands, None, keep=False)
        return
    plan = operands.plan()
    _, kept = forward(operands, plan, keep=True)
    backward(
        operands,
        plan,
        kept,
        torch.empty_like(operands.hidden),
        Wanted(True, True, True, biased, True, biased),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--all-shapes", action="store_true", help="every tile shape, not only the first of each list"
    )
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = arguments.tf32
    compiler = Compiler(arguments.arch)

    def launch(kernel: Any, *values: Any, grid: Any, warmup: bool, **words: Any) -> None:
        compiler.compile(kernel, values, words)

    def launch_each(
        tuned: Any, shapes: Any, grid: Any, kind: Any, *values: Any, **constants: Any
    ) -> dict[str, int]:
        for shape in shapes() if arguments.all_shapes else shapes()[:1]:
            words = dict(num_warps=shape.num_warps, num_stages=shape.num_stages)
            tuned.kernel[grid](*values, **constants, **shape.kwargs, **words)
        return shape.kwargs

    jit.JITFunction.run = launch
    tuning.Tuned.__call__ = launch_each
    for case in arguments.cases or CASES:
        compiler.case = case
        run(*CASES[case])


if __name__ == "__main__":
    main()

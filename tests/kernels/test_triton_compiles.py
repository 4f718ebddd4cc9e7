"""Triton's kernels compile for a Hopper GPU, on any machine: what the interpreter runs, a compiler might refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("triton_compile.py")
SHARED_MEMORY = 227 * 1024  # of one program, on compute capability 9.0


def compile_kernels(*words):
    triton = pytest.importorskip("triton")
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/ptxas").exists():
        pytest.skip("this Triton comes without an assembler for NVIDIA devices")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(SCRIPT.parents[2])
    command = [sys.executable, str(SCRIPT), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [(), ("--tf32", "float32"), ("--arch", "80", "rows_64")], ids=["hopper", "tf32", "ampere"]
)
def test_every_kernel_compiles_without_spilling(words):
    reports = compile_kernels(*words)
    kernels = {report["kernel"] for report in reports}
    assert {
        "make_plan",
        "inner_product",
        "rows_product",
        "sum_choices",
        "gate_gradient",
        "weight_gradient",
    } <= kernels
    for report in reports:
        assert report["shared"] <= SHARED_MEMORY, report
        # What stands at odd addresses needs a mask for each number.
        assert report["stack"] <= (1024 if report["case"] == "odd" else 64), report


@pytest.mark.slow
def test_large_products_use_the_matrix_units_of_hopper():
    products = {"inner_product", "rows_product", "gate_gradient", "weight_gradient"}
    reports = [
        report for report in compile_kernels("rows_128", "gpt_oss", "stacked") if report["kernel"] in products
    ]
    assert {report["kernel"] for report in reports} == products
    for report in reports:
        assert report["wgmma"], report
        # Copied by 16 bytes: fewer would be many times as many instructions.
        assert 0 < report["copies"] < 100, report

"""Moeba's experts implementation against stock transformers' own, in one process, beside what the machine could do.

    python benchmarks/fast_experts.py [--quick] [--write benchmarks/RESULTS.md]

Random native models in the shapes of Mixtral, Qwen3-MoE, GPT-OSS and DeepSeek-V3. The experts layer alone on what its
router chose, and the whole model: decoding, prefill, a training step, in float32 and bf16; decoding compiled; peak
memory; growing numbers of experts; LoRA on experts. Rounds alternate between implementations in turning order. A
result that differs from eager's is not timed. litgpt runs on the same weights where it is installed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from experts_speed import adapters, compiled, floors, layer, litgpt_peer, machine, memory, scaling, whole
from experts_speed.cells import OURS, Cell, is_ours
from experts_speed.contenders import ZEROS_LIMIT, implementations
from experts_speed.models import MODELS, SHAPES, Shape, build_model, busiest_share
from experts_speed.report import Results, milliseconds, render, write_section
from experts_speed.timing import Flush, Plan
from transformers import PreTrainedModel

SECTIONS = ("layer", "whole", "compiled", "memory", "scaling", "adapters")
EXPERTS = (8, 64, 256)
# What --quick leaves out.
QUICK_MODELS = ("mixtral", "qwen3_moe")
QUICK_WORKS = ("decode 1", "decode 8", "prefill 512", "train 1024")
QUICK_PLAN = Plan(rounds=3, patience=1.0)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="two models of two layers, few rounds, no compiling"
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="parts to measure; default: all")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled forms out (minutes)")
    parser.add_argument("--compile-models", nargs="+", choices=MODELS, default=["qwen3_moe"])
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--works", nargs="+", choices=tuple(dict.fromkeys([*layer.WORKS, *whole.WORKS])))
    parser.add_argument("--size", choices=tuple(SHAPES), help="of the models; default: the device's")
    parser.add_argument("--rounds", type=int, help="at most so many a comparison; default 7")
    parser.add_argument(
        "--patience", type=float, help="seconds after which a comparison ends at three rounds"
    )
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--write", type=Path, help="put the section into this file")
    given = parser.parse_args(arguments)
    given.size = given.size or given.device
    given.dtype = given.dtype or ["float32", "bfloat16"]
    given.models = given.models or list(QUICK_MODELS if given.quick else MODELS)
    given.only = given.only or list(SECTIONS)
    if given.no_compile or given.quick:
        given.only = [section for section in given.only if section != "compiled"]
    plan = QUICK_PLAN if given.quick else Plan()
    given.plan = Plan(
        given.rounds or plan.rounds, plan.patience if given.patience is None else given.patience
    )
    given.zeros_limit = ZEROS_LIMIT / 10 if given.quick else ZEROS_LIMIT
    return given


def wanted(given: argparse.Namespace, works: Sequence[str]) -> list[str]:
    chosen = given.works or (QUICK_WORKS if given.quick else works)
    return [work for work in works if work in chosen]


def shape_of(given: argparse.Namespace, model_type: str) -> Shape:
    shape = SHAPES[given.size][model_type]
    return replace(shape, layers=2) if given.quick else shape


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    quiet()
    if given.threads:
        torch.set_num_threads(given.threads)
    start = time.perf_counter()
    loads = [machine.load()]
    small = given.size == "tiny"
    rates = floors.measure_rates(given.device, given.dtype, size=128 if small else 2048)
    command = "python benchmarks/fast_experts.py " + " ".join(
        sys.argv[1:] if arguments is None else arguments
    )
    results = Results(given.device, command.strip(), machine.describe(given.device), rates, loads=loads)
    results.models = given.models
    if given.device == "cpu":
        results.fresh_rate = floors.fresh_memory_rate(2**22 if small else 2**28)
    print(results.machine, f"load {loads[0]:.1f}", sep="\n", flush=True)
    if OURS not in implementations():
        print(f"No implementation named {OURS} is registered: stock ones are measured alone.", flush=True)
    flush = Flush(given.device)
    for model_type in given.models:
        measure_model(given, model_type, results, flush)
        gc.collect()
    memory_known = "memory" in given.only and memory.available(given.device)
    if memory_known:
        results.usages = memory.measure_memory(given.size, given.models, given.dtype, given.device)
    if "scaling" in given.only:
        measure_scaling(given, results, flush)
    if "adapters" in given.only and adapters.available():
        for dtype in given.dtype:
            show(results, adapters.measure_adapters(given.size, dtype, given.device, given.plan, flush))
        if memory_known:
            results.adapter_usages = memory.measure_memory(
                given.size, [], given.dtype, given.device, "adapters"
            )
    results.rates = rates.best(floors.measure_rates(given.device, given.dtype, size=128 if small else 2048))
    loads.append(machine.load())
    results.minutes = (time.perf_counter() - start) / 60
    text = render(results)
    print(f"\n{text}", flush=True)
    if given.write:
        write_section(given.write, f"fast experts, {given.device}", text)


def measure_model(given: argparse.Namespace, model_type: str, results: Results, flush: Flush) -> None:
    """The layer, the whole model and its compiled form, in each dtype."""
    if not {"layer", "whole", "compiled"} & set(given.only):
        return
    shape = shape_of(given, model_type)
    model = build_model(model_type, shape, given.device)
    skew = busiest_share(layer.routes_of(model, 1024), shape.experts)
    results.shapes[model_type] = (
        f"{shape.layers} layers of {shape.hidden}, {shape.experts} experts of {shape.width}, top {shape.top_k}; "
        f"{model.num_parameters() / 1e6:.0f}M parameters; the busiest expert has {skew:.1f} times its share"
    )
    for dtype in given.dtype:
        model.to(getattr(torch, dtype))
        if "layer" in given.only:
            for work in wanted(given, list(layer.WORKS)):
                show(
                    results,
                    layer.measure_layer(
                        model, model_type, layer.WORKS[work], given.plan, flush, given.zeros_limit
                    ),
                )
        if "whole" in given.only:
            peer = peer_of(model, model_type)
            for work in wanted(given, whole.WORKS):
                show(
                    results,
                    whole.measure_whole(model, model_type, work, given.plan, flush, given.zeros_limit, peer),
                )
        if "compiled" in given.only and model_type in given.compile_models:
            cell, seconds = compiled.measure_compiled(model, model_type, given.plan, flush)
            results.compilations.append((cell, seconds))
            show(results, cell)


def peer_of(model: PreTrainedModel, model_type: str) -> whole.Peer:
    if litgpt_peer.available() and model_type in litgpt_peer.FAMILIES:
        return litgpt_peer.LitgptPeer(model)
    return lambda model, work: {}


def measure_scaling(given: argparse.Namespace, results: Results, flush: Flush) -> None:
    shape = SHAPES[given.size]["qwen3_moe"]
    for dtype in given.dtype:
        for experts in EXPERTS[:2] if given.quick else EXPERTS:
            growth = scaling.measure_growth(shape, experts, dtype, given.device, given.plan, flush)
            results.growths.append((dtype, growth))
            show(None, growth.step)
            show(None, growth.with_optimizer)
            gc.collect()


def show(results: Results | None, cell: Cell) -> None:
    """Say a cell as soon as it is measured, and keep it."""
    times = ", ".join(f"{name} {milliseconds(timing.median)}" for name, timing in cell.timings.items())
    ratio = "" if cell.ratio is None else f"; ratio {cell.ratio:.2f}"
    print(f"{cell.where} {cell.model} {cell.dtype} {cell.work}: {times} ms{ratio}", flush=True)
    for name, reason in cell.outcome.refused.items():
        if is_ours(name):
            print(f"  {name}: {reason}", flush=True)
    if results is not None:
        results.cells.append(cell)


def quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module=r"torch\._(dynamo|inductor).*")


if __name__ == "__main__":
    main()

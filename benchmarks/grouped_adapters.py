"""LoRA on experts' matrices: Moeba's grouped adapters against PEFT's own path, in time and peak memory.

    python benchmarks/grouped_adapters.py

One experts layer of Qwen3-MoE's shape with frozen weights and adapters on both matrices. A training step is forward
and backward to the input, the routing weights and the adapters. PEFT runs with stock transformers' default
implementation of the experts and with Moeba's; rounds alternate between all contenders, and the first round, which
warms up, does not count. Peak memory is of a process a contender, from the kernel's count (VmHWM), without what it
held before the step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

import moeba
from moeba.kernels import register_experts
from moeba.kernels.adapters import group_adapters, ungroup_adapters

HIDDEN, WIDTH, TOP_K, RANK = 512, 256, 8, 16
GROUPED = "grouped adapters"
CONTENDERS = ("peft, grouped_mm", "peft, moeba", GROUPED)
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def build(num_experts: int, dtype: torch.dtype) -> nn.Module:
    """One layer with random weights and adapters, as PEFT makes it; adapters are float32, as PEFT's default."""
    register_experts()
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=HIDDEN, moe_intermediate_size=WIDTH, num_experts=num_experts, num_experts_per_tok=TOP_K
    )
    config._experts_implementation = "grouped_mm"
    layer = nn.ModuleDict({"experts": Qwen3MoeExperts(config)})
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.02)
    lora = LoraConfig(
        r=RANK,
        target_modules=[],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        init_lora_weights=False,
    )
    return get_peft_model(layer.to(dtype), lora)


def inputs(num_experts: int, tokens: int, dtype: torch.dtype) -> Inputs:
    torch.manual_seed(1)
    chances = torch.randn(tokens, num_experts).softmax(-1)
    weights, index = chances.topk(TOP_K)
    hidden = torch.randn(tokens, HIDDEN).to(dtype).requires_grad_()
    return hidden, index, (weights / weights.sum(-1, keepdim=True)).to(dtype).requires_grad_()


def choose(layer: nn.Module, contender: str) -> None:
    """Make a layer of `build` run as one of `CONTENDERS`."""
    if contender == GROUPED:
        group_adapters(layer)
    else:
        ungroup_adapters(layer)
        layer.base_model.model["experts"].get_base_layer().config._experts_implementation = contender[6:]


def training_step(layer: nn.Module, given: Inputs) -> list[torch.Tensor]:
    """The output and every gradient."""
    wanted = [given[0], given[2], *(p for p in layer.parameters() if p.requires_grad)]
    output = layer.base_model.model["experts"](*given)
    return [output.detach(), *torch.autograd.grad(output, wanted, torch.ones_like(output))]


@torch.no_grad()
def forward(layer: nn.Module, given: Inputs) -> list[torch.Tensor]:
    return [layer.base_model.model["experts"](*given)]


def seconds(
    num_experts: int, dtype: torch.dtype, work: Callable[..., object], tokens: int, rounds: int
) -> dict[str, float]:
    """Median seconds of each contender, in interleaved rounds."""
    layer, given = build(num_experts, dtype), inputs(num_experts, tokens, dtype)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(rounds + 1):
        for name in CONTENDERS:
            choose(layer, name)
            start = time.perf_counter()
            work(layer, given)
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def peak_bytes(num_experts: int, dtype: torch.dtype, tokens: int, contender: str) -> int:
    """What a training step needs besides what was there, in a process of its own."""
    asked = json.dumps([num_experts, str(dtype).removeprefix("torch."), tokens, contender])
    command = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--peak", asked]
    environment = {**os.environ, "PYTHONPATH": str(Path(moeba.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring memory failed:\n{done.stderr[-2000:]}")
    return int(done.stdout)


def _print_peak(num_experts: int, dtype: str, tokens: int, contender: str) -> None:
    kind = getattr(torch, dtype)
    layer, given = build(num_experts, kind), inputs(num_experts, tokens, kind)
    choose(layer, contender)
    forward(layer, inputs(num_experts, 1, kind))  # what is loaded or compiled once does not count
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    training_step(layer, given)
    print(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        return _print_peak(*json.loads(given.peak))
    print(
        f"hidden {HIDDEN}, width {WIDTH}, top {TOP_K}, rank {RANK}, {torch.get_num_threads()} threads; "
        "times in ms, ratio: the faster of PEFT's over grouped"
    )
    columns = [*CONTENDERS, "ratio"]
    print(f"| experts | dtype | work | {' | '.join(columns)} |\n|{'---|' * (3 + len(columns))}")
    for num_experts in given.experts:
        for dtype in (torch.float32, torch.bfloat16):
            for name, work, tokens in (
                ("decode, 1 token", forward, 1),
                (f"forward, {given.tokens} tokens", forward, given.tokens),
                (f"training step, {given.tokens} tokens", training_step, given.tokens),
            ):
                times = seconds(num_experts, dtype, work, tokens, given.rounds)
                _print_row(num_experts, dtype, name, {n: t * 1e3 for n, t in times.items()})
            peaks = {name: peak_bytes(num_experts, dtype, given.tokens, name) / 2**20 for name in CONTENDERS}
            _print_row(num_experts, dtype, "training step, peak MiB", peaks)


def _print_row(num_experts: int, dtype: torch.dtype, work: str, values: dict[str, float]) -> None:
    ratio = min(value for name, value in values.items() if name != GROUPED) / values[GROUPED]
    cells = [*(f"{value:.1f}" for value in values.values()), f"{ratio:.1f}"]
    print(
        f"| {num_experts} | {str(dtype).removeprefix('torch.')} | {work} | {' | '.join(cells)} |", flush=True
    )


if __name__ == "__main__":
    main()

"""LoRA on fused experts: adapters grouped by `moeba.kernels.adapters` beside PEFT's own path, on one experts layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import nn

from .cells import OURS, Cell
from .contenders import implementations
from .layer import Work, arguments, routes_of
from .memory import Usage, peak_of
from .models import SHAPES, Routed, build_model
from .timing import Call, Plan, measure, tolerance

RANK = 16
WORK = Work("lora 1024", 1024, training=True)


def available() -> bool:
    return find_spec("peft") is not None and find_spec("moeba.kernels.adapters") is not None


class Adapted:
    """A model of the shape of Qwen3-MoE whose experts alone have adapters, none of them zero."""

    def __init__(self, size: str, dtype: str, device: str) -> None:
        from peft import LoraConfig, get_peft_model

        shape = replace(SHAPES[size]["qwen3_moe"], layers=1)
        self.native = build_model("qwen3_moe", shape, device).to(getattr(torch, dtype))
        self.routes = {tokens: routes_of(self.native, tokens)[0][0] for tokens in (8, WORK.tokens)}
        names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        config = LoraConfig(r=RANK, target_modules=[], target_parameters=names)
        self.model = get_peft_model(self.native, config, autocast_adapter_dtype=False)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
        self.experts = self.native.model.layers[0].mlp.experts  # PEFT's outermost wrapper
        self.adapters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def calls(self, tokens: int = WORK.tokens) -> dict[str, Call]:
        """A training step of the adapters: PEFT's own path on stock implementations, and grouped adapters."""
        calls = {f"peft {name}": self.call(tokens, name, grouped=False) for name in ("eager", "grouped_mm")}
        return calls | {OURS: self.call(tokens, implementations()[-1], grouped=True)}

    def call(self, tokens: int, implementation: str, grouped: bool) -> Call:
        from moeba.training import group_adapters, ungroup_adapters

        one = self.routes[tokens]
        one = Routed(one.hidden.clone().requires_grad_(), one.index, one.weights.clone().requires_grad_())
        above = torch.randn(one.hidden.shape, generator=torch.Generator().manual_seed(2)).to(one.hidden)
        leaves = [one.hidden, one.weights, *self.adapters]

        def prepare() -> None:
            (group_adapters if grouped else ungroup_adapters)(self.model)
            self.native.set_experts_implementation(implementation)
            for leaf in leaves:
                leaf.grad = None

        def run() -> torch.Tensor:
            output = self.experts(*arguments(one))
            output.backward(above)
            return output.detach()

        return Call(prepare, run, lambda output: [output, *(leaf.grad for leaf in leaves)])


def measure_adapters(size: str, dtype: str, device: str, plan: Plan, flush: Callable[[], object]) -> Cell:
    """Seconds of one step of one layer."""
    adapted = Adapted(size, dtype, device)
    outcome = measure(adapted.calls(), plan, tolerance(dtype, training=True), flush=flush)
    return Cell("adapters", "qwen3_moe", dtype, WORK.name, outcome)


def usages(size: str, models: Sequence[str], dtypes: Sequence[str], device: str) -> list[Usage]:
    """Peak memory of such a step; the gradients that must stay are those of the adapters."""
    found = []
    for dtype in dtypes:
        adapted = Adapted(size, dtype, device)
        gradients = sum(parameter.nbytes for parameter in adapted.adapters)
        small = adapted.calls(tokens=8)
        for name, call in adapted.calls().items():
            peak = peak_of(small[name], call, device, f"lora {dtype} {name}")
            if peak is not None:
                found.append(Usage("qwen3_moe", dtype, name, peak, gradients))
    return found

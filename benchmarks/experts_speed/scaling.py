"""A training step of one experts layer as the number of experts grows and what a token uses does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from .cells import Cell
from .contenders import ZEROS_LIMIT, implementations, obstacle
from .layer import layer_call, layer_cost, routes_of
from .models import Shape, build_model, experts_of
from .timing import Call, Outcome, Plan, measure, tolerance

TOKENS = 1024


@dataclass(frozen=True)
class Growth:
    """One number of experts: the step alone, and with AdamW; bytes that grow with the experts."""

    experts: int
    weights: int
    step: Cell
    with_optimizer: Cell

    @property
    def gradients(self) -> int:
        return self.weights

    @property
    def optimizer(self) -> int:
        """Both moments of AdamW, in the weights' dtype."""
        return 2 * self.weights


def measure_growth(
    shape: Shape, experts: int, dtype: str, device: str, plan: Plan, flush: Callable[[], object]
) -> Growth:
    model = build_model("qwen3_moe", replace(shape, experts=experts, layers=1), device).to(
        getattr(torch, dtype)
    )
    modules = experts_of(model)
    routes = routes_of(model, TOKENS)
    cost = layer_cost(modules, routes, training=True)
    cells = []
    for optimized in (False, True):
        calls, refused = {}, {}
        for name in implementations():
            reason = obstacle(name, modules, routes, True, ZEROS_LIMIT / 3)
            if reason:
                refused[name] = reason
                continue
            call = layer_call(model, name, modules, routes, training=True)
            calls[name] = with_adamw(model, call) if optimized else call
        outcome = measure(calls, plan, tolerance(dtype, training=True), flush=flush)
        outcome = Outcome(outcome.timings, refused | outcome.refused)
        work = f"{experts} experts{' and AdamW' if optimized else ''}"
        cells.append(Cell("scaling", "qwen3_moe", dtype, work, outcome, *(() if optimized else (cost, cost))))
    weights = sum(parameter.nbytes for module in modules for parameter in module.parameters())
    return Growth(experts, weights, *cells)


def with_adamw(model: PreTrainedModel, call: Call) -> Call:
    """The step, then one of the optimizer; its rate is 0, so that the weights stay what the others start from."""
    parameters = list(experts_of(model)[0].parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)

    def run() -> list[torch.Tensor]:
        outputs = call.run()
        optimizer.step()
        return outputs

    return Call(call.prepare, run, call.collect)

"""The experts layer alone: each layer of a model, one after the other, on what its own router chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from .cells import Cell
from .contenders import ZEROS_LIMIT, implementations, obstacle
from .floors import Cost, experts_cost
from .models import Routed, Routes, experts_of, recording, sizes_of
from .timing import Call, Outcome, Plan, measure, tolerance


@dataclass(frozen=True)
class Work:
    name: str
    tokens: int
    training: bool = False
    most_layers: int = 1000  # of a model; two are more than any cache where a work uses all experts
    steps: int = 1  # passes through all layers in a row, each of `tokens` others


# Decoding takes several steps, as a model writes: after one alone, Python's own code would come from memory each time.
STEPS = 4
WORKS = {
    "decode 1": Work("decode 1", 1, steps=STEPS),
    "decode 8": Work("decode 8", 8, steps=STEPS),
    "decode 32": Work("decode 32", 32, steps=STEPS),
    "prefill 512": Work("prefill 512", 512, most_layers=2),
    "prefill 2048": Work("prefill 2048", 2048, most_layers=2),
    "train 1024": Work("train 1024", 1024, training=True, most_layers=2),
}


def measure_layer(
    model: PreTrainedModel,
    model_type: str,
    work: Work,
    plan: Plan,
    flush: Callable[[], object],
    zeros_limit: float = ZEROS_LIMIT,
    where: str = "layer",
) -> Cell:
    """Seconds are of one layer in one step."""
    dtype = str(model.dtype).removeprefix("torch.")
    experts = experts_of(model)[: work.most_layers]
    routes = routes_of(model, work.tokens, work.steps)[: work.most_layers]
    calls, refused = {}, {}
    for name in implementations():
        reason = obstacle(name, experts, routes, work.training, zeros_limit)
        if reason:
            refused[name] = reason
        else:
            calls[name] = layer_call(model, name, experts, routes, work.training)
    per = len(experts) * work.steps
    outcome = measure(calls, plan, tolerance(dtype, work.training), per, flush=flush)
    release(model)
    outcome = Outcome(outcome.timings, refused | outcome.refused)
    cost = layer_cost(experts, routes, work.training)
    return Cell(where, model_type, dtype, work.name, outcome, cost, cost)


def routes_of(model: PreTrainedModel, tokens: int, steps: int = 1) -> Routes:
    """What the layers' routers choose for one random text, cut into a call for each `tokens` of it."""
    ids = random_ids(model, 1, tokens * steps)
    with torch.no_grad(), recording(model) as routes:
        model.set_experts_implementation("grouped_mm")
        model(ids, logits_to_keep=1, use_cache=False)
    return [[one for call in calls for one in call.split(tokens)] for calls in routes]


def random_ids(model: PreTrainedModel, batch: int, length: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator).to(model.device)


def layer_cost(experts: list[nn.Module], routes: Routes, training: bool) -> Cost:
    """Of one layer in one step, on average."""
    return routed_cost(experts, routes, training).over(sum(map(len, routes)))


def routed_cost(experts: list[nn.Module], routes: Routes, training: bool) -> Cost:
    """Of all calls in all layers."""
    total = Cost()
    for module, calls in zip(experts, routes, strict=True):
        hidden, width = sizes_of(module)
        for call in calls:
            total += experts_cost(
                hidden=hidden,
                width=width,
                gated=module.has_gate,
                selections=call.index.numel(),
                distinct=call.distinct,
                itemsize=module.down_proj.element_size(),
                training=training,
            )
    return total


def layer_call(
    model: PreTrainedModel, name: str, experts: list[nn.Module], routes: Routes, training: bool
) -> Call:
    """All layers by one implementation, step by step. Compared are outputs, and in training every gradient."""
    inputs = [one for step in zip(*routes, strict=True) for one in step]
    modules = experts * len(routes[0])
    if training:
        inputs = [
            Routed(one.hidden.clone().requires_grad_(), one.index, one.weights.clone().requires_grad_())
            for one in inputs
        ]
    generator = torch.Generator().manual_seed(2)
    above = [torch.randn(one.hidden.shape, generator=generator).to(one.hidden) for one in inputs]

    def prepare() -> None:
        model.set_experts_implementation(name)
        release(model)
        for one in inputs:
            one.hidden.grad = one.weights.grad = None

    def forward() -> list[torch.Tensor]:
        with torch.no_grad():
            return [module(*arguments(one)) for module, one in zip(modules, inputs, strict=True)]

    def step() -> list[torch.Tensor]:
        outputs = []
        for module, one, gradient in zip(modules, inputs, above, strict=True):
            output = module(*arguments(one))
            output.backward(gradient)
            outputs.append(output.detach())
        return outputs

    def gradients(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        leaves = [leaf for one in inputs for leaf in (one.hidden, one.weights)]
        leaves += [parameter for module in experts for parameter in module.parameters()]
        return [*outputs, *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]

    return Call(prepare, step, gradients) if training else Call(prepare, forward, list)


def arguments(one: Routed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return one.hidden, one.index, one.weights


def release(model: nn.Module) -> None:
    """Gradients are made anew in each step, as after a Trainer's step."""
    model.zero_grad(set_to_none=True)

"""Whole-model decoding by torch.compile with a static cache, beside the same model not compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedModel, StaticCache

from moeba.library.upstream import CACHE

from .cells import OURS, REST, Cell
from .contenders import implementations
from .layer import STEPS, random_ids, routed_cost
from .models import experts_of
from .timing import LOOSE, Call, Outcome, Plan, first_line, measure, tolerance, unchecked
from .whole import CONTEXT, decode, filled, prepare, recorded


def measure_compiled(
    model: PreTrainedModel, model_type: str, plan: Plan, flush: Callable[[], object], batch: int = 1
) -> tuple[Cell, dict[str, float]]:
    """The cell, and how many seconds each compilation took."""
    dtype = str(model.dtype).removeprefix("torch.")
    plain, cost, _ = decode(model, batch)
    routed = routed_cost(experts_of(model), recorded(model, plain), training=False)
    calls = {
        name: Call(partial(prepare, model, name, plain), plain.run, plain.collect)
        for name in implementations()
        if name in ("eager", "grouped_mm", OURS)
    }
    refused = {"eager compiled": "its loop over experts depends on data: no single graph"}
    seconds: dict[str, float] = {}
    torch._dynamo.reset()
    for name in [*implementations()[1:], REST]:
        try:
            prepare(model, name, plain)
            plain.run()  # what does not run at all need not be compiled
            call = compiled_call(model, name, batch)
            if name == REST:
                call = unchecked(call)
            call.prepare()
            start = time.perf_counter()
            call.run()
        except Exception as error:  # a refusal, and told
            refused[f"{name} compiled"] = f"{type(error).__name__}: {first_line(error)}"
            continue
        seconds[f"{name} compiled"] = time.perf_counter() - start
        calls[f"{name} compiled"] = call
    # A compiled model chooses experts itself.
    allowed = tolerance(dtype) if dtype == "float32" else LOOSE
    outcome = measure(calls, plan, allowed, STEPS, torch.no_grad, flush)
    outcome = Outcome(outcome.timings, refused | outcome.refused)
    torch._dynamo.reset()
    costs = ((cost + routed).over(STEPS), routed.over(STEPS))
    return Cell("compiled", model_type, dtype, f"decode {batch}", outcome, *costs), seconds


def compiled_call(model: PreTrainedModel, name: str, batch: int) -> Call:
    """Decoding as in `whole.decode`, in one graph."""
    ids = random_ids(model, batch, CONTEXT + STEPS)
    cache = filled(model, StaticCache(config=model.config, max_cache_len=CONTEXT + STEPS), ids[:, :CONTEXT])
    forward = torch.compile(partial(logits_of, model), fullgraph=True, dynamic=False)

    def rewind() -> None:
        model.set_experts_implementation(name)
        for layer in cache.layers:
            layer.cumulative_length.fill_(CONTEXT)
            if hasattr(layer, "cumulative_length_int"):
                layer.cumulative_length_int = CONTEXT

    def run() -> list[torch.Tensor]:
        with torch.no_grad():
            return [forward(ids[:, i : i + 1], cache).clone() for i in range(CONTEXT, CONTEXT + STEPS)]

    return Call(rewind, run, list)


def logits_of(model: PreTrainedModel, ids: torch.Tensor, cache: StaticCache) -> torch.Tensor:
    return model(ids, **{CACHE: cache}, use_cache=True).logits

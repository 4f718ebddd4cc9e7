"""The whole model: decoding against a filled cache, prefill, a training step, generate()."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from moeba.library.upstream import CACHE

from .cells import REST, Cell
from .contenders import ZEROS_LIMIT, implementations, obstacle
from .floors import Cost, attention_cost, dense_cost
from .layer import STEPS, random_ids, release, routed_cost
from .models import Routes, experts_of, recording, replaying
from .timing import Call, Outcome, Plan, measure, tolerance, unchecked

CONTEXT = 128  # tokens in the cache when decoding starts
GENERATED = 32
WORKS = ("decode 1", "decode 8", "prefill 512", "prefill 2048", "train 1024", f"generate {GENERATED}")

Peer = Callable[[PreTrainedModel, str], dict[str, Call]]


def measure_whole(
    model: PreTrainedModel,
    model_type: str,
    work: str,
    plan: Plan,
    flush: Callable[[], object],
    zeros_limit: float = ZEROS_LIMIT,
    peer: Peer = lambda model, work: {},
) -> Cell:
    """Seconds are of one step of decoding or one other work.

    Args:
        peer: calls of other libraries on the same weights.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    kind, size = work.split(" ")
    number, training = int(size), kind == "train"
    call, cost, per = {"decode": decode, "prefill": prefill, "train": train, "generate": generate}[kind](
        model, number
    )
    routes: Routes = []
    routed = Cost()
    if kind != "generate":
        routes = recorded(model, call)
        routed = routed_cost(experts_of(model), routes, training)
    calls, refused = {}, {}
    for name in implementations():
        reason = obstacle(name, experts_of(model), routes, training, zeros_limit) if routes else None
        if reason:
            refused[name] = reason
        else:
            calls[name] = Call(partial(prepare, model, name, call), call.run, call.collect)
    calls |= peer(model, work) | {REST: rest(model, call)}
    checking = partial(replaying, model, routes) if routes else partial(torch.no_grad)
    # Greedy text is compared where rounding cannot change it.
    allowed = math.inf if kind == "generate" and dtype != "float32" else tolerance(dtype, training)
    outcome = measure(calls, plan, allowed, per, checking, flush)
    release(model)
    model.eval()
    outcome = Outcome(outcome.timings, refused | outcome.refused)
    costs = () if kind == "generate" else ((cost + routed).over(per), routed.over(per))
    return Cell("whole", model_type, dtype, work, outcome, *costs)


def prepare(model: PreTrainedModel, name: str, call: Call) -> None:
    model.set_experts_implementation(name)
    call.prepare()


def rest(model: PreTrainedModel, call: Call) -> Call:
    """The same without experts. Its result means nothing."""
    return unchecked(Call(partial(prepare, model, REST, call), call.run, call.collect))


def recorded(model: PreTrainedModel, call: Call) -> Routes:
    with recording(model) as routes:
        prepare(model, "grouped_mm", call)
        call.run()
    release(model)
    return routes


Prepared = tuple[Call, Cost, int]  # the call, its cost without experts, and the units it does


def decode(model: PreTrainedModel, batch: int) -> Prepared:
    """`STEPS` tokens of each of `batch` texts, one after the other, after `CONTEXT` tokens in a DynamicCache."""
    ids = random_ids(model, batch, CONTEXT + STEPS)
    cache = filled(model, DynamicCache(config=model.config), ids[:, :CONTEXT])

    def rewind() -> None:
        for layer in cache.layers:  # one by one: an implementation that raised has filled only the first
            layer.crop(CONTEXT - layer.get_seq_length())

    def run() -> list[torch.Tensor]:
        with torch.no_grad():
            return [
                model(ids[:, i : i + 1], **{CACHE: cache}, use_cache=True).logits
                for i in range(CONTEXT, CONTEXT + STEPS)
            ]

    cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    cost = Cost()
    for position in range(CONTEXT, CONTEXT + STEPS):
        cost += rest_cost(model, batch, batch, batch * (position + 1), training=False) + Cost(nbytes=cached)
    return Call(rewind, run, list), cost, STEPS


def filled(model: PreTrainedModel, cache: DynamicCache, ids: torch.Tensor) -> DynamicCache:
    model.set_experts_implementation("grouped_mm")
    with torch.no_grad():
        model(ids, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
    return cache


def prefill(model: PreTrainedModel, length: int) -> Prepared:
    """One text into a new cache."""
    ids = random_ids(model, 1, length)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return model(ids, use_cache=True, logits_to_keep=1).logits

    cost = rest_cost(model, length, 1, length * (length + 1) // 2, training=False)
    return Call(lambda: None, run, lambda logits: [logits]), cost, 1


def train(model: PreTrainedModel, tokens: int) -> Prepared:
    """Forward and backward of two texts. Compared are the loss and gradients at both ends."""
    length = tokens // 2
    ids = random_ids(model, 2, length)
    ends = [
        model.get_input_embeddings(),
        experts_of(model)[0],
        experts_of(model)[-1],
        model.get_output_embeddings(),
    ]

    def clear() -> None:
        model.train()
        release(model)

    def run() -> torch.Tensor:
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss.detach()

    def collect(loss: torch.Tensor) -> list[torch.Tensor]:
        return [loss, *(parameter.grad for module in ends for parameter in module.parameters())]

    cost = rest_cost(model, tokens, tokens, 2 * length * (length + 1) // 2, training=True)
    return Call(clear, run, collect), cost, 1


def generate(model: PreTrainedModel, count: int) -> Prepared:
    """Greedy text after 16 tokens, with all that `generate()` does around the model; seconds are of a token."""
    ids = random_ids(model, 1, 16)

    def run() -> torch.Tensor:
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )

    return Call(lambda: None, run, lambda text: [text]), Cost(), count


def rest_cost(model: PreTrainedModel, rows: int, head_rows: int, pairs: int, training: bool) -> Cost:
    """All but the experts: matrices, the head for `head_rows` tokens, attention. An embedding is no product."""
    head = model.get_output_embeddings().weight
    skipped = {id(model.get_input_embeddings().weight), id(head)}
    skipped |= {id(parameter) for module in experts_of(model) for parameter in module.parameters()}
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1 and id(p) not in skipped)
    size = head.element_size()
    return (
        dense_cost(weights=weights, rows=rows, itemsize=size, training=training)
        + dense_cost(weights=head.numel(), rows=head_rows, itemsize=size, training=training)
        + attention_cost(pairs=pairs, **attention_sizes(model), training=training)
    )


def attention_sizes(model: nn.Module) -> dict[str, int]:
    """Heads of all layers, and the sizes of their keys and values."""
    config = model.config
    key = getattr(config, "qk_head_dim", config.head_dim)
    return {
        "heads": config.num_attention_heads * config.num_hidden_layers,
        "key_size": key,
        "value_size": getattr(config, "v_head_dim", key),
    }

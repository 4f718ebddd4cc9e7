"""Assertions that two causal language models compute the same: logits, cache, generated tokens, gradients, routing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from family_case import Case, padded, positions_of, takes_positions
from products import products_of
from transformers import PreTrainedModel

from moeba import MoebaForCausalLM
from moeba.conversion.checkpoint import Checkpoint
from moeba.conversion.plan import PlannedTensors, plan_import
from moeba.library.upstream import CACHE, cache_of, has_cache

# Of the spread: what another order of float32 sums may change. A few tiny models amplify any rounding; for them it is
# the certificate's measure, a multiple of what stock's own two implementations of attention differ by.
ROUNDING = 2e-6
# Rounding errors on a gradient's way that may add up; the largest sum seen over all families was of four.
STEPS = 8
# Lengths of the pieces in which `LENGTH` tokens go through the cache: one token at a time, and more.
PIECES = (17, 1, 1, 9, 1, 11)


def assert_close(
    ours: torch.Tensor, theirs: torch.Tensor, exact: bool, what: str, rounding: float = ROUNDING
) -> None:
    """The same bits, or the same to rounding: a share of the stock values' spread from lowest to highest."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, what
    if torch.equal(ours, theirs):
        return
    difference = (ours - theirs).abs().max().item()
    spread = (theirs.max() - theirs.min()).item()
    told = f"{what}: the largest difference is {difference:.2e} in a spread of {spread:.2e}"
    assert not exact, f"{told}, not bit-identical (a family may say why in `reordered`)"
    assert difference <= rounding * spread, f"{told}, more than rounding"


@contextmanager
def attention(implementation: str, *models: PreTrainedModel) -> Iterator[None]:
    """Both models with one attention implementation, without gradients."""
    for model in models:
        model.set_attn_implementation(implementation)
    with torch.no_grad():
        yield
    for model in models:
        model.set_attn_implementation("eager")


def assert_same_logits(case: Case, ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    """Plain, padded on the left and through the cache, under each attention implementation of the stock model."""
    ids = case.ids()
    ragged, mask = padded(case)
    real, rounding = mask.bool(), rounding_of(case)
    runs: dict[str, Callable[[PreTrainedModel], torch.Tensor]] = {
        "logits": lambda model: model(ids, use_cache=False).logits,
        "logits with a mask": lambda model: model(ragged, attention_mask=mask).logits[real],
    }
    if has_cache(theirs.forward):  # GPT, the first one, has none
        runs["logits through the cache"] = lambda model: cached_logits(model, ids)
    if takes_positions(theirs):
        given = dict(attention_mask=mask, position_ids=positions_of(mask))
        runs["logits with a mask and positions"] = lambda model: model(ragged, **given).logits[real]
    for implementation in ("eager", "sdpa") if theirs._supports_sdpa else ("eager",):
        with attention(implementation, ours, theirs):
            for what, run in runs.items():
                assert_close(run(ours), run(theirs), case.exact, f"{what}, {implementation}", rounding)


def assert_same_products(case: Case, ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    """Both models run the same products on operands that lie alike: the same bits are no luck of one processor."""
    ids = case.ids()
    for implementation in ("eager", "sdpa") if theirs._supports_sdpa else ("eager",):
        with attention(implementation, ours, theirs):
            runs = [lambda model: model(ids, use_cache=False)]
            if has_cache(theirs.forward):
                runs.append(lambda model: cached_logits(model, ids))
            for run in runs:
                found, expected = (products_of(lambda m=model, run=run: run(m)) for model in (ours, theirs))
                assert found == expected, (implementation, found - expected, expected - found)


def cached_logits(model: PreTrainedModel, ids: torch.Tensor, pieces: Sequence[int] = PIECES) -> torch.Tensor:
    """Logits of all tokens, fed in pieces that continue each other's cache."""
    assert sum(pieces) == ids.shape[1]
    cache, found = None, []
    for piece in ids.split(list(pieces), dim=1):
        output = model(piece, **{CACHE: cache}, use_cache=True)
        cache = cache_of(output)
        found.append(output.logits)
    return torch.cat(found, dim=1)


def assert_same_tokens(case: Case, ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    """Greedy generation with the cache, from a batch padded on the left."""
    ids, mask = (tensor[:2, :20] for tensor in padded(case))
    settings: dict[str, Any] = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    first, second = (model.generate(ids, attention_mask=mask, **settings) for model in (ours, theirs))
    assert first.shape[1] == 26
    assert torch.equal(first, second), "generated tokens"


def assert_same_gradients(case: Case, ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    """Of a cross-entropy, without router losses. The stock model's, saved like weights, go through the rows."""
    ids = case.ids()
    ids[:, 5] = 0  # the padding id as a token: some embeddings learn nothing from it
    expected = stock_gradients(theirs, ids, case.folder / "gradients")
    backward(ours, ids)
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    ours.zero_grad(set_to_none=True)
    noise = gradient_noise(theirs, ids, expected, case.folder / "gradients-nudged")
    largest = max(value.abs().max().item() for name, value in expected.items() if name in found)
    for name, value in expected.items():
        if name not in found:  # a buffer
            continue
        gradient = torch.zeros_like(value) if found[name] is None else found[name]
        difference = (gradient - value).abs().max().item()
        # A few rounded steps on the way of each number; and where all of them cancel, one of the largest.
        allowed = STEPS * noise[name] + torch.finfo(value.dtype).eps * largest
        assert difference <= allowed, f"gradient of {name}: {difference:.2e}, allowed {allowed:.2e}"


def rounding_of(case: Case) -> float:
    """`ROUNDING`, or more where the model itself amplifies rounding and sums run in another order than stock's."""
    return ROUNDING if case.exact else max(ROUNDING, case.noise)


def gradient_noise(
    model: PreTrainedModel, ids: torch.Tensor, gradients: dict[str, torch.Tensor], folder: Path
) -> dict[str, float]:
    """How far each gradient moves when every weight is rounded once more.

    A sum in another order is the exact sum of terms that are each off by a rounding or a few: what those do to a
    gradient hangs on the model, on its sizes and on what cancels, and is measured.
    """
    noise = dict.fromkeys(gradients, 0.0)
    for seed in range(2):  # by one draw alone, a gradient of a few numbers may hardly move
        with nudged(model, seed):
            moved = stock_gradients(model, ids, folder / str(seed))
        for name, value in gradients.items():
            noise[name] = max(noise[name], (moved[name] - value).abs().max().item())
    return noise


@contextmanager
def nudged(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Every weight a rounding error larger or smaller."""
    generator = torch.Generator().manual_seed(seed)
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.mul_(1 + signs * torch.finfo(parameter.dtype).eps)
        try:
            with torch.enable_grad():
                yield
        finally:
            for parameter, value in zip(model.parameters(), kept, strict=True):
                parameter.copy_(value)


def backward(model: PreTrainedModel, ids: torch.Tensor) -> None:
    model.set_attn_implementation("eager")
    logits = model(ids, use_cache=False).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()


def stock_gradients(model: PreTrainedModel, ids: torch.Tensor, folder: Path) -> dict[str, torch.Tensor]:
    """The stock model's gradients under Moeba's names; the model keeps its weights."""
    backward(model, ids)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            # An expert that no token visits has none.
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.zero_grad(set_to_none=True)
    model.save_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    planned = PlannedTensors(plan_import(Checkpoint(folder))[0])
    return {name: planned.read(name) for name in planned.tensors}


@contextmanager
def routed(model: PreTrainedModel) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """What enters the experts of each sparse layer, in order: tokens `[n, hidden]` and chosen experts `[n, k]`.

    Every model of transformers calls its module `experts` with tokens, indices and weights.
    """
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[1])))
        for name, module in model.named_modules()
        if name.endswith(".experts")
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def choices(model: PreTrainedModel, ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and sorted experts of every sparse layer in one pass."""
    with routed(model) as seen, torch.no_grad():
        model(ids, use_cache=False)
    return [(tokens.detach(), experts.sort(-1)[0]) for tokens, experts in seen]


def choices_given(model: MoebaForCausalLM, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Sorted experts that each sparse layer of ours picks for these tokens, `[n, hidden]` a layer."""
    blocks = [model.model.layers[i].mlp for i in model.config.sparse_layers]
    with routed(model) as seen, torch.no_grad():
        for block, tokens in zip(blocks, inputs, strict=True):
            block(tokens[None])
    return [experts.sort(-1)[0] for _, experts in seen]


def agreement(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Share of tokens, over all layers, that both send to the same experts."""
    same = [(a == b).all(-1) for a, b in zip(first, second, strict=True)]
    return torch.cat(same).float().mean().item()

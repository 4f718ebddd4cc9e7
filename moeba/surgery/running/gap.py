"""What an operation that does not keep the function has lost, measured on text."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from ...conversion.threads import one_thread
from ...modeling import MoebaForCausalLM

_LOGITS = 1 << 25  # numbers that are in memory at a time
_SMALL = 500_000_000  # parameters; one thread takes two minutes for them


def measure_gap(
    source: MoebaForCausalLM,
    target: MoebaForCausalLM,
    ids: torch.Tensor,
    shared: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Both models on the same tokens.

    Smaller models are run with one thread, so that the figures are the same on any number of processors. Those of
    larger ones hang on the number of threads by the rounding of float32 sums (some 1e-9 of a figure, where it was
    measured), and tell that number.

    Args:
        ids: `[windows, length]`, the source's; each window is read by itself.
        shared: where they differ, the ids of the tokens that both know, in the source and in the target, `[tokens]`
            each: `ids` are among them, and both predict among them alone. By default both mean the same by all ids.

    Returns:
        `tokens`: how many were predicted. `source_nll`, `target_nll`: mean negative log-likelihood, in nats a token.
        `kl`: mean Kullback-Leibler divergence of the target's prediction from the source's, in nats. `top1`: share of
        tokens for which both find the same one most likely. `shared_tokens`: how many they predicted among.
        `threads`: how many computed it, where the figures hang on that.
    """
    is_small = max(model.config.num_params() for model in (source, target)) <= _SMALL
    with one_thread() if is_small else nullcontext():
        figures = _measured(source, target, ids, shared)
    return figures if is_small else {**figures, "threads": torch.get_num_threads()}


@torch.no_grad()
def _measured(
    source: MoebaForCausalLM,
    target: MoebaForCausalLM,
    ids: torch.Tensor,
    shared: tuple[torch.Tensor, torch.Tensor] | None,
) -> dict[str, Any]:
    columns: tuple[Any, Any] = (slice(None), slice(None))
    labels, theirs = ids, ids
    if shared is not None:
        columns = shared
        labels = torch.full((source.config.vocab_size,), -1).scatter(
            0, shared[0], torch.arange(len(shared[0]))
        )[ids]
        theirs = shared[1][labels]
    states = [
        model.model(own, use_cache=False).last_hidden_state[:, :-1]
        for model, own in ((source, ids), (target, theirs))
    ]
    flat = [state.reshape(-1, state.shape[-1]) for state in states]
    labels = labels[:, 1:].reshape(-1)
    # In double: a divergence is of second order in the differences of logits, below the rounding of its own terms.
    totals = torch.zeros(4, dtype=torch.double)
    step = max(1, _LOGITS // source.config.vocab_size)
    for start in range(0, len(labels), step):
        part = slice(start, start + step)
        a, b = (
            model.compute_logits(state[part])[:, kept].double().log_softmax(-1)
            for model, state, kept in zip((source, target), flat, columns, strict=True)
        )
        nll = [F.nll_loss(scores, labels[part], reduction="sum") for scores in (a, b)]
        kl = F.kl_div(b, a, log_target=True, reduction="sum")
        totals += torch.stack([*nll, kl, (a.argmax(-1) == b.argmax(-1)).sum().double()])
    means = (totals / len(labels)).tolist()
    return {
        "tokens": len(labels),
        **({} if shared is None else {"shared_tokens": len(shared[0])}),
        **dict(zip(("source_nll", "target_nll", "kl", "top1"), means, strict=True)),
    }


def describe_gap(gap: dict[str, Any]) -> list[str]:
    """A line for a person, and one for each source where there are several."""
    lines = []
    for name, figures in [("", gap), *((item["name"], item) for item in gap.get("per_source", ()))]:
        if "tokens" not in figures:
            continue
        what = (
            f"{name or gap.get('text', 'text')}: negative log-likelihood {figures['source_nll']:.4f} -> "
            f"{figures['target_nll']:.4f} nats a token, KL {figures['kl']:.3g}, same most likely token "
            f"{figures['top1']:.1%} ({figures['tokens']:,} tokens)"
        )
        lines.append(what)
    return lines

"""The router of a merge: rows that send a token to the model whose text it resembles.

mergekit takes the rows from what enters each layer of the base model. Here they come from what the router itself will
receive: the input of the feed-forward, after its norm, in the merged model, whose lower layers already route by the
rows that were found for them. All of it is one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ...conversion.checkpoint import TensorSource
from ...conversion.plan import EMBEDDING, PlannedTensors
from ..routers.router_init import routing_report, spread_rows
from ..running.streaming import streamed_model
from ..running.texts import MAX_TOKENS, WINDOW, Texts, observe_feed_forwards
from .merge_recipe import ExpertRecipe
from .merging import Merging

DEGENERATE = 5.0  # condition number from which on mergekit warns
_MEANINGS = {
    "hidden": "the last token of each prompt",
    "hidden_last": "the last token of each prompt",
    "hidden_avg": "all tokens of each prompt",
    "calibration": "all tokens of each text",
}


def own_text(expert: ExpertRecipe) -> Texts | None:
    """What an expert is for: its calibration files, or else its prompts, as one text.

    Raises:
        ValueError: a file cannot be read, or holds nothing.
    """
    if expert.calibration:
        read = Texts.read(expert.calibration)
        return Texts((", ".join(read.names),), ("\n\n".join(read.texts),))
    if expert.positive_prompts:
        return Texts((f"prompts of {expert.name}",), ("\n\n".join(expert.positive_prompts),))
    return None


@dataclass(frozen=True)
class Samples:
    """Token ids of several experts' texts, filled up at the end to one length.

    Attributes:
        ids: `[samples, length]`. real: those that are no filling. counted: those that a direction is made of.
        owners: `[samples]`, whose text it is. positive: `[samples]`, whether it attracts or repels.
    """

    ids: torch.Tensor
    real: torch.Tensor
    counted: torch.Tensor
    owners: torch.Tensor
    positive: torch.Tensor

    def directions(self, vectors: torch.Tensor, experts: int) -> torch.Tensor:
        """For each expert the unit vector `[experts, hidden]` from the others' text, or its negative one, to its own.

        Args:
            vectors: `[samples, length, hidden]`.
        """
        weights = self.counted.float()
        means = (vectors * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True)

        def mean(owner: int, positive: bool) -> torch.Tensor:
            return means[(self.owners == owner) & (self.positive == positive)].mean(dim=0)

        own = torch.stack([mean(expert, True) for expert in range(experts)])
        overall = own.mean(dim=0)
        repels = [bool(((self.owners == expert) & ~self.positive).any()) for expert in range(experts)]
        away = torch.stack([mean(expert, False) if repels[expert] else overall for expert in range(experts)])
        return F.normalize(own - away, dim=-1)

    def balanced(self, vectors: torch.Tensor) -> torch.Tensor:
        """What attracts `[n, hidden]`, as many tokens of each text: short ones several times."""
        kept = self.real & self.positive.unsqueeze(-1)
        tokens, owners = vectors[kept], self.owners.unsqueeze(-1).expand_as(kept)[kept]
        places = [torch.where(owners == owner)[0] for owner in owners.unique()]
        most = max(map(len, places))
        return tokens[torch.cat([place[torch.arange(most) % len(place)] for place in places])]

    def report(self, rows: torch.Tensor, vectors: torch.Tensor, top_k: int) -> dict[str, Any]:
        """`routing_report` on the tokens that attract, and the share of them whose best expert is their own."""
        chosen = self.real & self.positive.unsqueeze(-1) & (self.owners < len(rows)).unsqueeze(-1)
        tokens, owners = vectors[chosen], self.owners.unsqueeze(-1).expand_as(chosen)[chosen]
        hits = ((tokens @ rows.T).argmax(-1) == owners).float().mean().item()
        return {**routing_report(rows, tokens, top_k), "own_expert": round(hits, 4)}


def draw_samples(experts: Sequence[ExpertRecipe], mode: str, tokenizer: Any, longest: int) -> Samples:
    """The texts of `experts`, tokenised; special tokens are read and do not count.

    Args:
        longest: what the model can read at once, in tokens.

    Raises:
        ValueError: a prompt holds no token, or more than the model reads.
    """
    special = set(tokenizer.all_special_ids)
    sequences: list[list[int]] = []
    owners, positive = [], []

    def add(owner: int, tokens: list[int], attracts: bool) -> None:
        sequences.append(tokens)
        owners.append(owner)
        positive.append(attracts)

    for owner, expert in enumerate(experts):
        text = own_text(expert) if mode == "calibration" and expert.calibration else None
        if text is not None:
            share, window = MAX_TOKENS // len(experts), min(WINDOW, longest)
            tokens = tokenizer(text.texts[0][: 16 * share], add_special_tokens=False)["input_ids"][:share]
            # What does not fill a window is left out, unless it is all there is.
            for start in range(0, max(len(tokens) - window + 1, 1), window):
                add(owner, tokens[start : start + window], True)
        prompts = [(prompt, True) for prompt in expert.positive_prompts if text is None]
        for prompt, attracts in [*prompts, *((prompt, False) for prompt in expert.negative_prompts)]:
            tokens = tokenizer(prompt)["input_ids"]
            if not 0 < len(tokens) <= longest:
                raise ValueError(
                    f"{expert.name}: the prompt {prompt[:40]!r} has {len(tokens)} tokens, the model reads 1 to "
                    f"{longest}."
                )
            add(owner, tokens, attracts)
    length = max(map(len, sequences))
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    real, counted = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for place, tokens in enumerate(sequences):
        ids[place, : len(tokens)] = torch.tensor(tokens)
        real[place, : len(tokens)] = True
        counts = [at for at, token in enumerate(tokens) if token not in special] or [*range(len(tokens))]
        counted[place, counts[-1:] if mode in ("hidden", "hidden_last") else counts] = True
    return Samples(ids, real, counted, torch.tensor(owners), torch.tensor(positive))


def route(merging: Merging, source: TensorSource, mode: str, tokenizer: Callable[[], Any]) -> None:
    """Find the rows of every router of a merge, and put them into it with a report.

    Args:
        source: the `Branches`. tokenizer: loads it, if the mode reads text.

    Raises:
        ValueError: there is no tokenizer, or a prompt does not fit.
    """
    config, hidden = merging.config, merging.config.hidden_size
    if mode == "random":
        return  # small normal rows, as upcycling has them
    if mode == "uniform_random":
        bound = hidden**-0.5
        for layer in config.sparse_layers:
            generator = torch.Generator().manual_seed(merging.seed * 100_003 + layer)
            rows = torch.rand(len(merging.experts), hidden, generator=generator)
            merging.rows[layer] = (2 * rows - 1) * bound
        return
    routed = list(merging.experts)
    shared = merging.shared
    gated = shared is not None and config.shared_expert_gate and bool(shared.positive_prompts)
    samples = draw_samples(
        [*routed, shared] if shared is not None and gated else routed,
        mode,
        tokenizer(),
        config.max_position_embeddings,
    )
    planned = PlannedTensors(merging.plan(source))
    count = len(routed)

    def directions(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = samples.directions(vectors, count + gated)
        return found[:count], found[count:]

    if mode == "cheap_embed":
        if config.embedding_size != hidden:
            raise ValueError(
                f"gate_mode='cheap_embed': embeddings of {config.embedding_size} numbers say nothing about a stream of "
                f"{hidden}."
            )
        own, opens = directions(planned.read(EMBEDDING).float()[samples.ids])
        for layer in config.sparse_layers:
            merging.rows[layer] = own - own.mean(dim=0)
            if gated:
                merging.shared_gates[layer] = opens
        return

    def observe(layer: int, inputs: torch.Tensor) -> None:
        vectors = inputs.reshape(*samples.ids.shape, hidden)
        own, opens = directions(vectors)
        merging.rows[layer] = spread_rows(own, samples.balanced(vectors))
        if gated:
            merging.shared_gates[layer] = spread_rows(torch.cat((opens, -opens)), samples.balanced(vectors))[
                :1
            ]
        merging.reports[layer] = samples.report(merging.rows[layer], vectors, merging.top_k)

    # What stands after the last token of a text is not seen by it: filling needs no mask.
    observe_feed_forwards(streamed_model(config, planned), samples.ids, config.sparse_layers, observe)


def notes_on(mode: str, reports: dict[int, dict[str, Any]]) -> list[str]:
    """What a reader should know of the routers, and a warning where they hardly tell their experts apart."""
    if mode == "random":
        return [
            "gate_mode 'random': normal rows as small as the model's other new weights (mergekit: of size 1)"
        ]
    if mode == "uniform_random":
        return ["gate_mode 'uniform_random': as a fresh linear layer, as in mergekit"]
    if mode == "cheap_embed":
        return [
            "gate_mode 'cheap_embed': mean embeddings of the prompts, the same rows in each layer, as in mergekit"
        ]
    notes = [
        f"gate_mode '{mode}': rows from {_MEANINGS[mode]}, as each router of the merged model receives it, after the "
        "norm (mergekit: as it enters the layer of the base model)"
    ]
    poor = {layer: report for layer, report in reports.items() if report["condition_number"] > DEGENERATE}
    if poor:
        worst = max(poor.values(), key=lambda report: report["condition_number"])
        notes.append(
            f"the routers of layers {', '.join(map(str, poor))} hardly tell some experts apart (condition number up to "
            f"{worst['condition_number']}, largest cosine {worst['largest_cosine']}): give texts that differ more, or "
            "train the router"
        )
    return notes

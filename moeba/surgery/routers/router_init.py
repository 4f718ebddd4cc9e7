"""Router rows for a model that has just grown experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...modeling import MoebaForCausalLM
from ..running.texts import observe_feed_forwards

CHOICES = ("normal", "zeros", "calibration")
TOKENS_PER_EXPERT = 4  # fewer say nothing about a cluster


def random_rows(choice: str, shape: tuple[int, int], std: float, seed: int, layer: int) -> torch.Tensor:
    """`[experts, hidden]` in float32: small normal noise of its own for each layer and seed, or zeros."""
    if choice == "zeros":
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(seed * 100_003 + layer)
    return torch.randn(shape, generator=generator) * std


def calibrated_rows(
    model: MoebaForCausalLM,
    ids: torch.Tensor,
    labels: torch.Tensor,
    layers: Sequence[int],
    experts: int,
    top_k: int,
    seed: int,
) -> tuple[dict[int, torch.Tensor], dict[int, dict[str, Any]]]:
    """Router rows that send tokens to the nearest of `experts` clusters of the feed-forward's true inputs.

    The clusters are found among directions (spherical k-means) of what each layer's feed-forward receives, after its
    norm, when the dense model reads the texts. Rows are orthogonal to the mean input, so that what all tokens share
    favours no expert, and scaled so that logits have a standard deviation of about 1.

    Args:
        ids: `[windows, length]`. labels: `[windows]`, which text a window is from; every text gets its own share of
            the experts, the first texts one more where they do not divide.

    Returns:
        The rows of each layer, `[experts, hidden]` in float32, and a report on how well they tell experts apart.

    Raises:
        ValueError: too few tokens to find that many clusters, or more texts than experts.
    """
    domains = int(labels.max()) + 1
    if domains > experts:
        raise ValueError(
            f"{domains} calibration texts for {experts} experts: give at most one text an expert."
        )
    shares = [experts // domains + (domain < experts % domains) for domain in range(domains)]
    owners = labels.repeat_interleave(ids.shape[1])
    for domain, share in enumerate(shares):
        tokens, needed = int((owners == domain).sum()), TOKENS_PER_EXPERT * share
        if tokens < needed:
            which = f"calibration text {domain + 1}" if domains > 1 else "calibration"
            raise ValueError(
                f"{which} gave {tokens} tokens for {share} experts: give at least {needed} tokens of text."
            )
    rows: dict[int, torch.Tensor] = {}
    reports: dict[int, dict[str, Any]] = {}

    def observe(layer: int, vectors: torch.Tensor) -> None:
        mean = vectors.mean(dim=0)
        found = [
            spherical_kmeans(vectors[owners == domain] - mean, share, seed + layer)
            for domain, share in enumerate(shares)
        ]
        rows[layer] = spread_rows(torch.cat(found), vectors)
        reports[layer] = routing_report(rows[layer], vectors, top_k)

    observe_feed_forwards(model, ids, layers, observe)
    return rows, reports


def spread_rows(directions: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Router rows along `directions` `[experts, hidden]`, blind to what all `vectors` `[n, hidden]` share.

    The directions' components along the mean vector, and their own mean, are taken away; what remains is scaled so
    that logits, `vectors @ rows.T` `[n, experts]`, have a standard deviation of 1.
    """
    shared = nn.functional.normalize(vectors.mean(dim=0), dim=0)
    rows = directions - torch.outer(directions @ shared, shared)
    rows = rows - rows.mean(dim=0)
    return rows / (vectors @ rows.T).std().clamp(min=1e-12)


def routing_report(rows: torch.Tensor, vectors: torch.Tensor, top_k: int) -> dict[str, Any]:
    """How a router of `rows` `[experts, hidden]` would spread the tokens `vectors` `[n, hidden]`.

    Loads are beside an even one, entropy beside that of an even choice: 1 is even.
    """
    experts = len(rows)
    logits = vectors @ rows.T
    loads = torch.bincount(logits.topk(top_k, dim=-1)[1].flatten(), minlength=experts) / (
        top_k * len(vectors)
    )
    chances = logits.softmax(-1)
    entropy = -(chances * chances.clamp(min=1e-30).log()).sum(-1).mean()
    # The rows lie in a space of one dimension less: their mean was taken away.
    sizes = torch.linalg.svdvals(rows)[: max(experts - 1, 1)]
    return {
        "largest_cosine": round(degeneracy(rows), 4),
        "condition_number": round((sizes[0] / sizes[-1].clamp(min=1e-12)).item(), 2),
        "largest_load": round(loads.max().item() * experts, 3),
        "smallest_load": round(loads.min().item() * experts, 3),
        "entropy": round((entropy / torch.tensor(float(max(experts, 2))).log()).item(), 4),
    }


def spherical_kmeans(vectors: torch.Tensor, clusters: int, seed: int, steps: int = 20) -> torch.Tensor:
    """Unit centroids `[clusters, hidden]` of the directions of `vectors` `[n, hidden]`; empty clusters are reseeded."""
    directions = nn.functional.normalize(vectors, dim=-1)
    generator = torch.Generator().manual_seed(seed)
    centroids = directions[torch.randperm(len(directions), generator=generator)[:clusters]].clone()
    for _ in range(steps):
        nearest, owner = (directions @ centroids.T).max(dim=-1)
        sums = torch.zeros_like(centroids).index_add_(0, owner, directions)
        empty = torch.bincount(owner, minlength=clusters) == 0
        if empty.any():
            # The tokens that fit their cluster worst start the new ones.
            sums[empty] = directions[nearest.argsort()[: int(empty.sum())]]
        centroids = nn.functional.normalize(sums, dim=-1)
    return centroids


def degeneracy(rows: torch.Tensor) -> float:
    """Largest cosine between two rows, 1 when two experts cannot be told apart."""
    directions = nn.functional.normalize(rows.float(), dim=-1)
    cosines = directions @ directions.T
    return cosines.fill_diagonal_(-1.0).max().item() if len(rows) > 1 else -1.0

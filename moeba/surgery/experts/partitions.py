"""Dividing the neurons of a feed-forward into experts of equal size: none is lost, and none is in two of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

STEPS = 30  # of k-means; it ends earlier where nothing moves


@dataclass(frozen=True)
class Division:
    """Which neurons of one layer go where.

    Attributes:
        experts: `[experts, width]`, each expert's in ascending order.
        shared: `[n]`, those of the shared expert; may be empty.
        factor: on the experts' down projections, whose weighted answers stand for all the neurons that are not shared.
            Where all n experts are visited with weights of 1 / n, n gives back their sum.
    """

    experts: torch.Tensor
    shared: torch.Tensor
    factor: float

    def __post_init__(self) -> None:
        neurons = torch.cat((self.experts.flatten(), self.shared)).sort().values
        assert torch.equal(neurons, torch.arange(len(neurons))), "a neuron is missing or stands twice"


def at_random(neurons: torch.Tensor, experts: int, generator: torch.Generator) -> torch.Tensor:
    """`neurons` `[n]` dealt out to `experts` of equal size, `[experts, n / experts]`."""
    order = torch.randperm(len(neurons), generator=generator)
    return neurons[order].reshape(experts, -1).sort(dim=1).values


def by_likeness(
    neurons: torch.Tensor, features: torch.Tensor, experts: int, generator: torch.Generator
) -> torch.Tensor:
    """`neurons` `[n]` in equal groups whose `features` `[n, d]` point the same way, `[experts, n / experts]`."""
    owner = equal_clusters(features, experts, generator)
    return neurons[owner.argsort(stable=True)].reshape(experts, -1).sort(dim=1).values


def equal_clusters(vectors: torch.Tensor, clusters: int, generator: torch.Generator) -> torch.Tensor:
    """Spherical k-means with clusters of equal size: the cluster of each of `vectors` `[n, d]`, `[n]`.

    One step costs `n * clusters * d` operations, so many thousand neurons are no matter.
    """
    directions = nn.functional.normalize(vectors.float(), dim=-1)
    centroids = _spread_seeds(directions, clusters, generator)
    owner = torch.full((len(directions),), -1)
    for _ in range(STEPS):
        found = assign_equally(directions @ centroids.T)
        if torch.equal(found, owner):
            break
        owner = found
        centroids = nn.functional.normalize(
            torch.zeros_like(centroids).index_add_(0, owner, directions), dim=-1
        )
    return owner


def assign_equally(likeness: torch.Tensor) -> torch.Tensor:
    """The cluster of each item, `[n]`, from how well it fits each, `[n, clusters]`; all clusters get `n / clusters`.

    Each item asks for the best cluster that has room; one that is asked by too many takes those who would lose most by
    going elsewhere. A round fills a cluster or is the last one, so there are at most as many rounds as clusters.
    """
    items, clusters = likeness.shape
    owner = torch.full((items,), -1)
    room = torch.full((clusters,), items // clusters)
    while len(waiting := (owner < 0).nonzero().flatten()):
        fits = likeness[waiting].masked_fill(room == 0, float("-inf"))
        best, choice = fits.max(dim=1)
        second = fits.scatter(1, choice[:, None], float("-inf")).max(dim=1).values
        order = (best - second).argsort(descending=True, stable=True)
        order = order[choice[order].argsort(stable=True)]  # by cluster, in each the most urgent first
        asked = torch.bincount(choice, minlength=clusters)
        place = torch.arange(len(order)) - (asked.cumsum(0) - asked)[choice[order]]
        taken = order[place < room[choice[order]]]
        owner[waiting[taken]] = choice[taken]
        room -= torch.bincount(choice[taken], minlength=clusters)
    return owner


def _spread_seeds(directions: torch.Tensor, clusters: int, generator: torch.Generator) -> torch.Tensor:
    """Items far from each other to start from (k-means++), `[clusters, d]`."""
    chosen = [int(torch.randint(len(directions), (1,), generator=generator))]
    distance = torch.full((len(directions),), float("inf"))
    for _ in range(clusters - 1):
        distance = distance.minimum((1 - directions @ directions[chosen[-1]]).clamp(min=0))
        distance[chosen[-1]] = 0
        weights = distance if distance.sum() > 0 else torch.ones_like(distance)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return directions[chosen]

"""How one dense feed-forward becomes the experts of a layer.

Each way says which neurons an expert has and what is changed in them. A neuron is a row of the gate and up
projections and the column of the down projection that reads it, so the answer to a token is a sum over neurons:

    a = act(gate @ x) * (up @ x)    x `[hidden]`, gate and up `[neurons, hidden]`, a `[neurons]`
    y = down @ a + bias             down `[hidden, neurons]`, y and bias `[hidden]`

A mixture answers the sum of `w[e] * y[e]` over a token's experts, whose weights w sum to 1. Copies have `y[e] = y`: the
answer is y, whatever is chosen. Of experts that hold one of G equal parts each, all parts weigh the same where a token
visits as many of each: 1 / G in sum, so the parts of `down` are multiplied by G, the `scale`. The bias of `down` is
not: every expert has it whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from .partitions import Division

GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"


@dataclass(frozen=True)
class Copies:
    """Every expert is the whole feed-forward (Sparse Upcycling, Komatsuzaki et al. 2022)."""

    experts: int
    seed: int = 0

    keeps_function = True
    granularity = 1  # experts that make up one whole feed-forward

    def width(self, intermediate_size: int) -> int:
        """Neurons of one expert."""
        return intermediate_size

    @property
    def scale(self) -> float:
        """Factor that a whole feed-forward needs beside weights that sum to 1 over its experts."""
        return float(self.granularity)

    def build(
        self, part: str, layer: int, tensors: Sequence[torch.Tensor], names: Sequence[str], factor: float
    ) -> Iterator[torch.Tensor]:
        """A tensor of all experts of a layer, `[1, ...]` each, from the dense projections that it consists of.

        Args:
            part: `weight` or `bias`. names: which projections `tensors` are, `gate_proj` and `up_proj` or `down_proj`.
            factor: on the down projection's tensor; 1.0 changes no bit.
        """
        for expert in range(self.experts):
            found = []
            for name, tensor in zip(names, tensors, strict=True):
                piece = self.piece(name, part, layer, expert, tensor)
                found.append(piece * factor if name == DOWN and factor != 1.0 else piece)
            yield (found[0] if len(found) == 1 else torch.cat(found)).unsqueeze(0)

    def piece(self, name: str, part: str, layer: int, expert: int, dense: torch.Tensor) -> torch.Tensor:
        """One expert's part of one projection. `dense` is `[neurons, hidden]`, or `[hidden, neurons]` for down."""
        return dense

    def report(self) -> dict[str, float]:
        """What of it a reader of the record should know."""
        return {}


@dataclass(frozen=True)
class Shards(Copies):
    """Every feed-forward is cut into `granularity` shards, of which each has several copies (He et al. 2024).

    Expert `e` holds shard `e % granularity`. Routers treat the experts of one whole alike, so a token visits one of
    each shard and sums up the whole.
    """

    granularity: int = 1

    def width(self, intermediate_size: int) -> int:
        return intermediate_size // self.granularity

    def piece(self, name: str, part: str, layer: int, expert: int, dense: torch.Tensor) -> torch.Tensor:
        if name == DOWN and part == "bias":
            return dense  # weights that sum to 1 make one bias of them
        width = self.width(dense.shape[1] if name == DOWN else dense.shape[0])
        neurons = slice(expert % self.granularity * width, (expert % self.granularity + 1) * width)
        return dense[:, neurons] if name == DOWN else dense[neurons]


@dataclass(frozen=True)
class Dropped(Copies):
    """Copies in which a share of the neurons starts anew, others in each expert (Drop-Upcycling, Nakamura et al. 2025).

    A new neuron's weights are drawn from the normal distribution of those that it replaces, by projection.
    """

    ratio: float = 0.5

    keeps_function = False

    def piece(self, name: str, part: str, layer: int, expert: int, dense: torch.Tensor) -> torch.Tensor:
        if part == "bias":
            return dense
        columns = name == DOWN
        neurons = self.neurons(layer, expert, dense.shape[1] if columns else dense.shape[0])
        where = (slice(None), neurons) if columns else (neurons,)
        old = dense[where].float()
        if old.numel() < 2:
            return dense
        generator = _generator(self.seed, layer, expert, name)
        new = dense.clone()
        new[where] = (old.mean() + old.std() * torch.randn(old.shape, generator=generator)).to(dense.dtype)
        return new

    def neurons(self, layer: int, expert: int, count: int) -> torch.Tensor:
        """Which neurons start anew, the same in all three projections."""
        generator = _generator(self.seed, layer, expert, "neurons")
        return torch.randperm(count, generator=generator)[: int(self.ratio * count)].sort().values


@dataclass(frozen=True)
class Noisy(Copies):
    """Copies with normal noise, `noise` times as large as the weights of the projection vary."""

    noise: float = 0.01

    keeps_function = False

    def piece(self, name: str, part: str, layer: int, expert: int, dense: torch.Tensor) -> torch.Tensor:
        if part == "bias":
            return dense
        generator = _generator(self.seed, layer, expert, name)
        wide = dense.float()
        return (wide + self.noise * wide.std() * torch.randn(wide.shape, generator=generator)).to(dense.dtype)


@dataclass(frozen=True)
class Parts(Copies):
    """The neurons are divided among experts of equal size, and perhaps one that is always on.

    Attributes:
        parts: equal parts of the whole, of which those beside the `experts` make up the shared expert.
        divisions: of each layer.
    """

    parts: int = 1
    divisions: dict[int, Division] = field(default_factory=dict)

    keeps_function = False

    def width(self, intermediate_size: int) -> int:
        return intermediate_size // self.parts

    def shared_width(self, intermediate_size: int) -> int:
        """Neurons of the shared expert."""
        return (self.parts - self.experts) * self.width(intermediate_size)

    def piece(self, name: str, part: str, layer: int, expert: int, dense: torch.Tensor) -> torch.Tensor:
        if name == DOWN and part == "bias":
            return dense  # weights that sum to 1 make one bias of them
        division = self.divisions[layer]
        neurons = division.experts[expert]
        return dense[:, neurons] * division.factor if name == DOWN else dense[neurons]

    def shared_piece(self, name: str, part: str, layer: int, dense: torch.Tensor) -> torch.Tensor:
        """The shared expert's part of one projection."""
        if name == DOWN and part == "bias":
            return torch.zeros_like(dense)  # the routed experts have it
        neurons = self.divisions[layer].shared
        return dense[:, neurons] if name == DOWN else dense[neurons]


def _generator(seed: int, layer: int, expert: int, what: str) -> torch.Generator:
    return random_stream(seed, layer, expert, ("neurons", GATE, UP, DOWN).index(what))


def random_stream(seed: int, layer: int, expert: int, number: int) -> torch.Generator:
    """One of four streams of random numbers that each expert of each layer has of its own."""
    return torch.Generator().manual_seed(((seed * 1009 + layer) * 100_003 + expert) * 4 + number)

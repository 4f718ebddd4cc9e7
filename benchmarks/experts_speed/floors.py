"""How fast a work could be on this machine: what it must multiply and read, over rates measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .machine import last_level_cache


@dataclass(frozen=True)
class Cost:
    """What no implementation can avoid."""

    flops: float = 0.0
    nbytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.nbytes + other.nbytes)

    def over(self, units: float) -> Cost:
        """Of one of `units` equal ones."""
        return Cost(self.flops / units, self.nbytes / units)


@dataclass(frozen=True)
class Rates:
    """Best rates seen: FLOP/s of products by dtype, bytes/s of reading."""

    products: dict[str, float]
    bandwidth: float

    def seconds(self, cost: Cost, dtype: str) -> float:
        """The floor. Products may run in float32 or in the dtype itself, whichever is faster here."""
        # A card's half precision is no way to a float32 result; a CPU's float32 is one to a bf16 result.
        rate = max(self.products["float32"], self.products[dtype])
        return max(cost.flops / rate, cost.nbytes / self.bandwidth)

    def best(self, other: Rates) -> Rates:
        """A busy moment lowers a rate and would raise every fraction: the better of two counts."""
        products = {name: max(rate, other.products[name]) for name, rate in self.products.items()}
        return Rates(products, max(self.bandwidth, other.bandwidth))


def experts_cost(
    *, hidden: int, width: int, gated: bool, selections: int, distinct: int, itemsize: int, training: bool
) -> Cost:
    """One experts layer: `selections` rows through an expert, `distinct` experts read once.

    Training triples the products (output, input's gradient, weights' gradient) and writes the gradients of those
    experts. Activations, biases, and zeros for experts without tokens are left out: the floor is a low one.
    """
    weights = (3 if gated else 2) * hidden * width
    return passes(Cost(2.0 * selections * weights, float(distinct * weights * itemsize)), training)


def dense_cost(*, weights: int, rows: int, itemsize: int, training: bool) -> Cost:
    """Matrices of `weights` elements in all, that each of `rows` tokens passes."""
    return passes(Cost(2.0 * weights * rows, float(weights * itemsize)), training)


def attention_cost(*, pairs: int, heads: int, key_size: int, value_size: int, training: bool) -> Cost:
    """Scores and weighted values of `pairs` of a query and a key, over all layers."""
    return passes(Cost(2.0 * pairs * heads * (key_size + value_size)), training)


def passes(forward: Cost, training: bool) -> Cost:
    return Cost(3 * forward.flops, 2 * forward.nbytes) if training else forward


def measure_rates(device: str, dtypes: list[str], size: int = 2048, repeats: int = 5) -> Rates:
    """Products of `size` cubed on all threads; matrix times vector over four times the last cache."""
    products = {}
    for name in dict.fromkeys(["float32", *dtypes]):
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, name)) for _ in range(2))
        out = torch.empty_like(a)
        products[name] = (
            2 * size**3 / best_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), repeats)
        )
    # A square one: some kernels are slow on others. On a card more memory is needed to fill it.
    nbytes = 2**31 if device == "cuda" else min(2**30, 4 * last_level_cache())
    side = max(64, int((nbytes * (size / 2048) ** 2 / 4) ** 0.5) // 64 * 64)
    matrix, vector = torch.ones(side, side, device=device), torch.ones(side, device=device)
    return Rates(products, matrix.nbytes / best_seconds(lambda: torch.mv(matrix, vector), repeats))


def fresh_memory_rate(nbytes: int = 2**28, repeats: int = 3) -> float:
    """Bytes/s of zeroing memory that the system has just given: what each new gradient costs on a CPU."""

    def fill() -> None:
        torch.empty(nbytes, dtype=torch.uint8).zero_()

    return nbytes / best_seconds(fill, repeats)


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def synchronize() -> None:
    """Wait for the card, where work was given to one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()

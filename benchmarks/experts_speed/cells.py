"""One measured work: who took how long, and what is compared with what."""

from __future__ import annotations

from dataclasses import dataclass

from .floors import Cost, Rates
from .timing import Outcome, Timing

OURS = "moeba"
REST = "rest"  # the model with experts that answer at once: the time of everything else
# Not transformers' experts: shown, and no part of the ratio to the best stock implementation.
UNRANKED = ("litgpt", REST)


@dataclass(frozen=True)
class Cell:
    where: str  # "layer", "whole", "compiled", "scaling" or "adapters"
    model: str
    dtype: str
    work: str
    outcome: Outcome
    cost: Cost | None = None
    experts_cost: Cost | None = None  # the experts' part of it

    @property
    def timings(self) -> dict[str, Timing]:
        return self.outcome.timings

    def best(self, ours: bool) -> tuple[str, float] | None:
        """Name and median seconds of the fastest: of moeba's forms, or of stock transformers'."""
        medians = {
            name: timing.median
            for name, timing in self.timings.items()
            if is_ours(name) == ours and first_word(name) not in UNRANKED
        }
        return min(medians.items(), key=lambda item: item[1]) if medians else None

    @property
    def ratio(self) -> float | None:
        """The best stock implementation's time over moeba's; above 1 moeba is faster."""
        stock, ours = self.best(ours=False), self.best(ours=True)
        return stock[1] / ours[1] if stock and ours else None

    def most(self, rates: Rates) -> float | None:
        """The ratio if experts ran at their floor and everything else took the time that it takes."""
        stock = self.best(ours=False)
        if stock is None or self.experts_cost is None:
            return None
        rest = min((t.median for name, t in self.timings.items() if first_word(name) == REST), default=0.0)
        return stock[1] / (rest + rates.seconds(self.experts_cost, self.dtype))

    def floor(self, rates: Rates) -> float | None:
        """Seconds."""
        return rates.seconds(self.cost, self.dtype) if self.cost else None

    def fraction(self, name: str, rates: Rates) -> float | None:
        """Of the floor that a contender reaches: 1 is as fast as the machine can."""
        floor = self.floor(rates)
        return floor / self.timings[name].median if floor is not None and name in self.timings else None


def is_ours(name: str) -> bool:
    return first_word(name) == OURS


def first_word(name: str) -> str:
    """Of a contender: "compiled" and the like follow."""
    return name.split(" ")[0]

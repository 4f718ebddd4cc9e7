"""What was aimed at, and whether each measured cell is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .cells import OURS, Cell
from .floors import Rates
from .memory import Usage

FLOOR_TARGET = 0.6  # of the floor, for float32 decoding and training of the experts layer on a CPU
MEMORY_TARGET = 0.6  # activations of a training step on a card, over the least of a stock implementation


@dataclass(frozen=True)
class Target:
    """A ratio of the best stock implementation's time to moeba's."""

    device: str
    where: str
    works: tuple[str, ...]
    dtypes: tuple[str, ...]
    ratio: float


FP32, BF16 = ("float32",), ("bfloat16",)
HALF = ("bfloat16", "float16")
SEVERAL = ("decode 8", "decode 32")
TARGETS = (
    Target("cpu", "layer", ("decode 1",), FP32, 2.0),
    Target("cpu", "layer", ("decode 1",), BF16, 2.5),
    Target("cpu", "layer", SEVERAL, FP32, 2.0),
    Target("cpu", "layer", SEVERAL, BF16, 3.0),
    Target("cpu", "layer", ("prefill 512",), FP32, 1.3),
    Target("cpu", "layer", ("prefill 512",), BF16, 2.0),
    Target("cpu", "layer", ("train 1024",), FP32, 1.4),
    Target("cpu", "layer", ("train 1024",), BF16, 2.5),
    Target("cpu", "whole", ("decode 1",), FP32, 1.4),
    Target("cpu", "whole", ("decode 1",), BF16, 1.6),
    Target("cpu", "whole", ("decode 8",), FP32, 1.6),
    Target("cpu", "whole", ("decode 8",), BF16, 2.2),
    Target("cpu", "whole", ("prefill 512",), FP32, 1.2),
    Target("cpu", "whole", ("prefill 512",), BF16, 1.7),
    Target("cpu", "whole", ("train 1024",), FP32, 1.25),
    Target("cpu", "whole", ("train 1024",), BF16, 2.0),
    Target("cpu", "compiled", ("decode 1",), FP32 + BF16, 1.1),
    Target("cuda", "layer", ("decode 1", *SEVERAL, "prefill 512"), FP32 + HALF, 1.3),
    Target("cuda", "layer", ("train 1024",), FP32 + HALF, 1.5),
)


@dataclass(frozen=True)
class Reached:
    value: float
    met: bool
    most: float | None = None  # what experts at their floor would reach


@dataclass(frozen=True)
class Verdict:
    """A row of the table: what was aimed at, and by model what was reached. None: not measured."""

    what: str
    target: str
    reached: dict[str, Reached | None]


def judge(
    device: str, cells: Sequence[Cell], usages: Sequence[Usage], rates: Rates, models: Sequence[str]
) -> list[Verdict]:
    """A verdict for each target of a device and each work and dtype that was measured."""
    found = []
    for target in (target for target in TARGETS if target.device == device):
        for work in target.works:
            for dtype in target.dtypes:
                chosen = pick(cells, target.where, work, dtype)
                if chosen:
                    reached = {
                        model: ratio_reached(chosen.get(model), target.ratio, rates) for model in models
                    }
                    found.append(Verdict(f"{work}, {target.where}, {dtype}", f"≥ {target.ratio:g}", reached))
    if device == "cpu":
        for work in ("decode 1", *SEVERAL, "train 1024"):
            chosen = pick(cells, "layer", work, "float32")
            if chosen:
                reached = {
                    model: at_least(
                        chosen[model].fraction(OURS, rates) if model in chosen else None, FLOOR_TARGET
                    )
                    for model in models
                }
                found.append(Verdict(f"{work}, layer, float32, of the floor", f"≥ {FLOOR_TARGET:g}", reached))
    if device == "cuda":
        for dtype in dict.fromkeys(usage.dtype for usage in usages):
            reached = {model: at_most(memory_ratio(usages, model, dtype), MEMORY_TARGET) for model in models}
            found.append(Verdict(f"activation memory, layer, {dtype}", f"≤ {MEMORY_TARGET:g}", reached))
    return found


def pick(cells: Sequence[Cell], where: str, work: str, dtype: str) -> dict[str, Cell]:
    return {cell.model: cell for cell in cells if (cell.where, cell.work, cell.dtype) == (where, work, dtype)}


def ratio_reached(cell: Cell | None, limit: float, rates: Rates) -> Reached | None:
    if cell is None or cell.ratio is None:
        return None
    return Reached(cell.ratio, cell.ratio >= limit, cell.most(rates))


def at_least(value: float | None, limit: float) -> Reached | None:
    return None if value is None else Reached(value, value >= limit)


def at_most(value: float | None, limit: float) -> Reached | None:
    return None if value is None else Reached(value, value <= limit)


def memory_ratio(usages: Sequence[Usage], model: str, dtype: str) -> float | None:
    """moeba's activations over the least of a stock implementation."""
    sizes = {
        usage.name: usage.activations for usage in usages if (usage.model, usage.dtype) == (model, dtype)
    }
    ours = sizes.pop(OURS, None)
    least = min(sizes.values(), default=0)
    return None if ours is None or not least else ours / least

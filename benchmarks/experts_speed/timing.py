"""Several ways to the same result: first compared, then timed in interleaved rounds."""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .floors import synchronize
from .machine import last_level_cache

# A half-precision gradient sums over tokens what was rounded before; so do stock implementations among themselves.
TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (3e-2, 1e-1), "float16": (1e-2, 3e-2)}
# These compile and tune nothing when they are first used: one run tells how long the next takes.
AT_ONCE = ("eager", "batched_mm", "peft eager")
LOOSE = 0.5  # for what chooses experts itself in half precision, and by rounding may choose others


def tolerance(dtype: str, training: bool = False) -> float:
    """Relative error in the Frobenius norm that is allowed."""
    return TOLERANCE[dtype][training]


@dataclass(frozen=True)
class Call:
    """One contender at one work. Only `run` is timed; `collect` takes what it returned to the tensors to compare."""

    prepare: Callable[[], object]
    run: Callable[[], Any]
    collect: Callable[[Any], list[torch.Tensor]]
    tolerance: float | None = None  # its own, instead of the work's; infinite: nothing is compared


def unchecked(call: Call) -> Call:
    """The same call, whose result is compared with nothing."""
    return replace(call, collect=lambda result: [], tolerance=math.inf)


@dataclass(frozen=True)
class Timing:
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float | None:
        """Interquartile range over the median; None of a single round."""
        if len(self.seconds) < 2:
            return None
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


@dataclass(frozen=True)
class Outcome:
    timings: dict[str, Timing] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # by contender, why


@dataclass(frozen=True)
class Plan:
    """At most `rounds` rounds, of which no more start after `patience` seconds, but three at least."""

    rounds: int = 7
    patience: float = 5.0
    least: int = 3


def measure(
    calls: Mapping[str, Call],
    plan: Plan,
    tolerance: float,
    per: int = 1,
    checking: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    flush: Callable[[], object] = lambda: None,
) -> Outcome:
    """Time those calls whose results equal the first call's.

    A call that is hopeless (one of `AT_ONCE`, whose check took longer than the plan's patience and four times as long
    as the fastest) is not run again: that one run is its timing.

    Args:
        per: units that one run does (layers, tokens); seconds are of one.
        checking: surrounds the runs that are compared.
        flush: empties caches before each timed run.
    """
    checks, refused = check(calls, tolerance, checking)
    if not checks:
        return Outcome({}, refused)
    limit = max(plan.patience, 4 * min(checks.values()))
    racing = {
        name: calls[name] for name, seconds in checks.items() if seconds <= limit or name not in AT_ONCE
    }
    timings = {name: Timing((seconds / per,)) for name, seconds in checks.items() if name not in racing}
    # A check that long has warmed up.
    warm = min(checks.values()) > plan.patience / 2
    for name, seconds in interleave(racing, plan, flush, warm).items():
        timings[name] = Timing(tuple(value / per for value in seconds))
    return Outcome({name: timings[name] for name in calls if name in timings}, refused)


def check(
    calls: Mapping[str, Call],
    tolerance: float,
    checking: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of a first run of those that agree with the first; why the others are out."""
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    expected: list[torch.Tensor] | None = None
    for name, call in calls.items():
        try:
            with checking():
                call.prepare()
                synchronize()
                start = time.perf_counter()
                result = call.run()
                synchronize()
                elapsed = time.perf_counter() - start
                found = [tensor.detach().clone() for tensor in call.collect(result)]
        except Exception as error:  # whatever a foreign implementation raises is its refusal, and told
            refused[name] = f"{type(error).__name__}: {first_line(error)}"
            continue
        if expected is None:
            expected = found
        allowed = tolerance if call.tolerance is None else call.tolerance
        error = difference(found, expected) if math.isfinite(allowed) else 0.0
        if error <= allowed:
            seconds[name] = elapsed
        else:
            refused[name] = (
                f"wrong: differs from {next(iter(seconds))} by {error:.1e} (allowed {allowed:.0e})"
            )
    return seconds, refused


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else "no message"


def difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest relative error of a pair, in the Frobenius norm; infinite where something is not finite."""
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            return math.inf
        scale = theirs.double().norm().item()
        error = (ours.double() - theirs.double()).norm().item() / (scale or 1.0)
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def interleave(
    calls: Mapping[str, Call], plan: Plan, flush: Callable[[], object] = lambda: None, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each round. The order turns by one each round; the first round only warms up, unless all are."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + plan.patience
    for turn in range(1 if warm else 0, plan.rounds + 1):
        if turn > plan.least and time.perf_counter() > end:
            break
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            elapsed = once(calls[name], flush)
            if turn:
                seconds[name].append(elapsed)
    return seconds


def once(call: Call, flush: Callable[[], object]) -> float:
    call.prepare()
    flush()
    gc.collect(0)
    synchronize()
    start = time.perf_counter()
    result = call.run()
    synchronize()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


class Flush:
    """Reads more memory than the caches hold, so that each run finds its weights in memory and not in a cache."""

    def __init__(self, device: str) -> None:
        nbytes = 2**28 if device == "cuda" else min(2**29, 2 * last_level_cache())
        self.memory = torch.ones(nbytes // 4, device=device)

    def __call__(self) -> None:
        self.memory.sum()

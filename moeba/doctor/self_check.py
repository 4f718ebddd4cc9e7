"""A short way through everything that Moeba does, on tiny random models in a temporary folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from ..library.notices import untested_is_known

if TYPE_CHECKING:
    from .trials import Step

Outcome = Literal["ok", "failed", "left out"]


@dataclass(frozen=True)
class Finding:
    """What came of one step: `detail` says what was found, or in one line why it failed or was left out."""

    family: str
    step: str
    outcome: Outcome
    detail: str
    seconds: float

    def line(self) -> str:
        return f"{self.family:<10} {self.step:<9} {self.outcome:<8} {self.seconds:5.1f} s  {self.detail}"


def self_check() -> Iterator[Finding]:
    """Each step as it ends. A step whose ground is missing is left out, and all others go on."""
    try:
        from ..conversion.scratch import scratch
        from ..conversion.threads import one_thread
        from .trials import TRIALS
    except Exception as error:
        yield Finding("all", "import", "failed", one_line(error), 0.0)
        return
    with (
        scratch("doctor") as folder,
        torch.random.fork_rng(devices=[]),
        one_thread(),  # the models are so small that threads only wait for each other
        untested_is_known(),
    ):
        for trial in TRIALS:
            yield from _go_through(trial.family, trial.steps(folder / trial.family))


def _go_through(family: str, steps: list[Step]) -> Iterator[Finding]:
    done: set[str | None] = {None}
    for step in steps:
        if step.needs not in done:
            yield Finding(family, step.name, "left out", f"it needs {step.needs}", 0.0)
            continue
        start = time.perf_counter()
        outcome: Outcome = "ok"
        try:
            detail = step.run()
            done.add(step.name)
        except Exception as error:  # anything that goes wrong is what is looked for
            outcome, detail = "failed", one_line(error)
        yield Finding(family, step.name, outcome, detail, time.perf_counter() - start)


def one_line(error: BaseException) -> str:
    """What was raised, short enough for a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

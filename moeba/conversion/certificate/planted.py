"""Faults planted in the Moeba side, each noticed by the comparison of its kind, or the certificate is void."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...modeling import MoebaForCausalLM
from .controls import FAULTS
from .faint import FAINT, faint_differences, has_faint_tokens
from .fault import Fault, of_fields
from .outputs import largest_difference
from .report import Control
from .run import Run, implementations
from .training import AMPLIFIED, NoLossError, loss_difference, training_difference


@dataclass(frozen=True)
class FaultKind:
    """
    Attributes:
        faults: of this kind.
        notice: `run of a sound and a damaged model -> (whether it stands out, how far)`; None where it cannot tell.
    """

    faults: tuple[Fault, ...]
    notice: Callable[[Run], tuple[bool, float] | None]


def _in_training(run: Run) -> tuple[bool, float]:
    found = training_difference(run)
    return found > AMPLIFIED * run.tolerance, found


def _in_the_loss(run: Run) -> tuple[bool, float] | None:
    try:
        found = loss_difference(run)
    except NoLossError:
        return None
    return found > AMPLIFIED * run.tolerance, found


def _on_faint_inputs(run: Run) -> tuple[bool, float] | None:
    found = faint_differences(run).values()
    return (max(found) > FAINT, max(found)) if found else None


def _in_logits(run: Run) -> tuple[bool, float]:
    worst, relative = largest_difference(run)
    return relative > run.tolerance, worst


KINDS: tuple[FaultKind, ...] = (
    FaultKind(of_fields("training"), _in_training),
    FaultKind(of_fields("loss"), _in_the_loss),
    FaultKind(of_fields("faint", {"norm_topk_eps": has_faint_tokens}), _on_faint_inputs),
    FaultKind(FAULTS, _in_logits),
)


def plant(run: Run, equal_experts: bool) -> Iterator[Control]:
    """Damage the Moeba side in every way that its config allows, and say of each whether it was noticed.

    Args:
        run: nothing is planted where neither model is Moeba's.
        equal_experts: the experts of a layer are copies of each other.
    """
    target_is_ours = isinstance(run.target, MoebaForCausalLM)
    ours = run.target if target_is_ours else run.source
    if not isinstance(ours, MoebaForCausalLM):
        return
    for model in run.models:
        model.set_attn_implementation(implementations(*run.models)[0])
    if target_is_ours:
        _ = run.source_logits  # once for all faults
    for kind in KINDS:
        for fault in kind.faults:
            if not fault.applies(ours.config) or (equal_experts and fault.distinct_experts):
                continue
            if not fault.finds_something(ours):
                continue
            damaged = fault.plant(ours)
            pair = (run.source, damaged) if target_is_ours else (damaged, run.target)
            if (found := kind.notice(run.with_models(*pair))) is not None:
                yield Control(fault.name, *found)

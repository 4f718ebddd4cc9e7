"""Assemble a certificate for two model folders: files, configs, keys, what they compute, and the planted faults.

A check is a function in one of two lists: of the folders' files, or of a run of two models. Adding one is adding it
there. Every run is of a small random twin first, and then of the checkpoint itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from ...library.upstream import attention
from ...modeling import MoebaForCausalLM
from ..binding import bind, proven_code
from ..checkpoint import resolve
from ..json_files import listing
from ..provenance import versions
from ..scratch import scratch
from ..threads import one_thread
from . import folder_checks, outputs, texts, training
from .battery import build_battery
from .faint import epsilons
from .half_precision import HALVES, compare_halves
from .planted import plant
from .report import Certificate, Check
from .run import EXACT, REORDERED, Run, first_divergence, implementations, rounding_noise
from .sides import Comparison, Kind, Models, Side
from .twin import CONTEXT, half_twins

FOLDER_CHECKS: tuple[Callable[[Comparison, Certificate], Check], ...] = (
    folder_checks.configs,
    folder_checks.tensors,
    folder_checks.tokenizers,
    folder_checks.training_fields,
)
RUN_CHECKS: tuple[Callable[[Run], Iterator[Check]], ...] = (
    outputs.logits_by_attention,
    outputs.hidden_states,
    outputs.gradients,
    texts.cache,
    texts.left_padding,
    texts.padded_batches,
    texts.far_positions,
    texts.greedy,
    texts.greedy_batch,
    training.training_pass,
    training.losses,
    outputs.router_choices,
    epsilons,
)
# A model with more parameters is not run whole: its twin and the bytes of its tensors are the proof.
LARGEST_RUN = 2_000_000_000
LONGEST_ACTUAL, LONGEST_TWIN = 256, CONTEXT + 32
# Tokens; rounding needs no more, and half precision is slow where a processor lacks it.
LONGEST_HALF = CONTEXT
TWIN, CHECKPOINT = "randomised twin", "checkpoint"


def certify(source: str | Path, target: str | Path, *, output: str | Path | None = None) -> Certificate:
    """Compare two model folders (or Hub ids) of any supported type, and write the certificate if `output` is given."""
    certificate = certify_folders(resolve(source), resolve(target))
    if output is not None:
        certificate.save(output)
    return certificate


def certify_folders(source: Path, target: Path, kind: Kind | None = None) -> Certificate:
    """Compare two model folders; of which kind the comparison is, is inferred from their configs by default."""
    first, second = Side(source), Side(target)
    both = Comparison(first, second, kind or Kind.of(first, second))
    certificate = Certificate(
        operation=both.kind.operation,
        source=first.identity(),
        target={**second.identity(), "bound": bind(target), "code": proven_code(second.family is None)},
        versions=versions(),
        config_differences=folder_checks.config_differences(both),
        keys=folder_checks.tensor_keys(both),
    )
    certificate.checks += [check(both, certificate) for check in FOLDER_CHECKS]
    if misfits := folder_checks.misfits(both):
        detail = f"not comparable: {listing(misfits)}"
        certificate.checks.append(Check("logits", "failed", detail=detail))
        return certificate
    if (build := both.twins) is not None:
        with scratch("proof") as folder, one_thread():
            _prove_twins(certificate, both, build(folder), folder)
    parameters = first.parameters + second.parameters
    if parameters > LARGEST_RUN:
        detail = f"{parameters:,} parameters are too many to run here"
        certificate.checks.append(Check("logits", "unverified", detail=detail, on=CHECKPOINT))
    else:
        _prove_checkpoints(certificate, both)
    return certificate


def _prove_twins(certificate: Certificate, both: Comparison, models: Models, folder: Path) -> None:
    run = _compared(certificate, both, models, LONGEST_TWIN, TWIN)
    certificate.negative_controls += plant(run, both.kind.equal_experts)
    if both.kind.twins is None:
        _compare_halves(certificate, both, half_twins(*models, folder, both.first.half), TWIN)


def _prove_checkpoints(certificate: Certificate, both: Comparison) -> None:
    first, second = both.sides
    models = both.loaded()
    run = _compared(certificate, both, models, LONGEST_ACTUAL, CHECKPOINT)
    if not certificate.negative_controls and not _fresh(run.source):
        if not any(isinstance(model, MoebaForCausalLM) for model in run.models):
            run = run.with_models(run.source, second.as_moeba())
        battery = build_battery(both.config_of(*run.models), LONGEST_TWIN)
        certificate.negative_controls += plant(replace(run, battery=battery), both.kind.equal_experts)
    if first.dtype in HALVES and not both.kind.rebuilt:
        del models, run
        _compare_halves(certificate, both, both.loaded(first.half), CHECKPOINT)


def _compared(certificate: Certificate, both: Comparison, models: Models, limit: int, on: str) -> Run:
    """Make every check of a run of these models, and return the run."""
    battery = build_battery(both.config_of(*models), limit)
    # A sum over several experts rounds otherwise than one feed-forward, and some models amplify any rounding.
    tolerance = max(REORDERED if both.kind.rebuilt else EXACT, 4 * rounding_noise(models, battery))
    run = Run(*models, battery, tolerance, on, both.modules, both.trains_otherwise, both.kind.rebuilt)
    with attention(implementations(*models)[0], *models):
        checks = [found for check in RUN_CHECKS for found in check(run)]
    certificate.checks += [_with_reason(check, both.order.reason) for check in checks]
    if any(check.status == "failed" for check in checks) and certificate.first_divergence is None:
        found = first_divergence(run)
        certificate.first_divergence = found and f"{found} ({on})"
    return run


def _compare_halves(certificate: Certificate, both: Comparison, models: Models, on: str) -> None:
    ids = build_battery(both.config_of(*models), LONGEST_HALF).longest
    checks, controls = compare_halves(*models, ids, both.order, on)
    certificate.checks += checks
    certificate.negative_controls += controls


def _with_reason(check: Check, reason: str) -> Check:
    """Logits that are equal to rounding say why, and what the stock model does otherwise in one way of running it."""
    told = reason and check.name.startswith("logits,")
    return replace(check, detail=f"{check.detail}; {reason}") if told else check


def _fresh(model: PreTrainedModel) -> bool:
    """Whether the weights look freshly initialised: every vector (norm, bias) is constant, and most faults hide."""
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return all(bool((vector == vector.flatten()[0]).all()) for vector in vectors)

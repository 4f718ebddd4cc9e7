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
from .sides import Pair
from .twin import CONTEXT, convert_twin, export_twin, half_twins, load_model

FOLDER_CHECKS: tuple[Callable[[Pair, Certificate], Check], ...] = (
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

Models = tuple[PreTrainedModel, PreTrainedModel]
Twins = Callable[[Path], Models]


def certify(source: str | Path, target: str | Path, *, output: str | Path | None = None) -> Certificate:
    """Compare two model folders (or Hub ids) of any supported type, and write the certificate if `output` is given."""
    certificate = certify_folders(resolve(source), resolve(target))
    if output is not None:
        certificate.save(output)
    return certificate


def certify_folders(
    source: Path,
    target: Path,
    *,
    twins: Twins | None = None,
    operation: str | None = None,
    reshaped: bool | None = None,
    equal_experts: bool | None = None,
) -> Certificate:
    """
    Args:
        twins: builds a randomised small source and target by the operation that is being proven; by default it is built
            from the family's rows when one side is native.
        operation: what made the target; inferred from the model types by default.
        reshaped: the feed-forwards were rebuilt, so their sizes and names rightly differ; by default inferred from
            whether just one side has experts.
        equal_experts: the experts of a layer are copies of each other, so faults that mix them up change nothing;
            default: as `reshaped`.
    """
    pair = Pair.of(source, target, reshaped, equal_experts, operation)
    first, second = pair.sides
    certificate = Certificate(
        operation=pair.operation,
        source=first.identity(),
        target={**second.identity(), "bound": bind(target), "code": proven_code(second.family is None)},
        versions=versions(),
        config_differences=folder_checks.config_differences(pair),
        keys=folder_checks.tensor_keys(pair),
    )
    certificate.checks += [check(pair, certificate) for check in FOLDER_CHECKS]
    if misfits := folder_checks.misfits(pair):
        detail = f"not comparable: {listing(misfits)}"
        certificate.checks.append(Check("logits", "failed", detail=detail))
        return certificate
    with scratch("proof") as folder, one_thread():
        build = twins or _family_twins(pair)
        if build is not None:
            models = build(folder)
            run = _compared(certificate, pair, models, LONGEST_TWIN, TWIN)
            certificate.negative_controls += plant(run, pair.equal_experts)
            if twins is None:
                _compare_halves(certificate, pair, half_twins(*models, folder, first.half), TWIN)
    if first.parameters + second.parameters > LARGEST_RUN:
        detail = f"{first.parameters + second.parameters:,} parameters are too many to run here"
        certificate.checks.append(Check("logits", "unverified", detail=detail, on=CHECKPOINT))
        return certificate
    models = load_model(source, first.drops), load_model(target, second.drops)
    run = _compared(certificate, pair, models, LONGEST_ACTUAL, CHECKPOINT)
    if not certificate.negative_controls and not _fresh(run.source):
        if not any(isinstance(model, MoebaForCausalLM) for model in run.models):
            run = run.with_models(run.source, second.as_moeba())
        battery = build_battery(pair.config_of(*run.models), LONGEST_TWIN)
        certificate.negative_controls += plant(replace(run, battery=battery), pair.equal_experts)
    if first.dtype in HALVES and not pair.rebuilt:
        del models, run
        halves = load_model(source, first.drops, first.half), load_model(target, second.drops, first.half)
        _compare_halves(certificate, pair, halves, CHECKPOINT)
    return certificate


def _compared(certificate: Certificate, pair: Pair, models: Models, limit: int, on: str) -> Run:
    """Make every check of a run of these models, and return the run."""
    battery = build_battery(pair.config_of(*models), limit)
    # A sum over several experts rounds otherwise than one feed-forward, and some models amplify any rounding.
    tolerance = max(REORDERED if pair.rebuilt else EXACT, 4 * rounding_noise(models, battery))
    run = Run(*models, battery, tolerance, on, pair.modules, pair.trains_otherwise, pair.rebuilt)
    with attention(implementations(*models)[0], *models):
        checks = [found for check in RUN_CHECKS for found in check(run)]
    certificate.checks += [_with_reason(check, pair.order.reason) for check in checks]
    if any(check.status == "failed" for check in checks) and certificate.first_divergence is None:
        found = first_divergence(run)
        certificate.first_divergence = found and f"{found} ({on})"
    return run


def _compare_halves(certificate: Certificate, pair: Pair, models: Models, on: str) -> None:
    ids = build_battery(pair.config_of(*models), LONGEST_HALF).longest
    checks, controls = compare_halves(*models, ids, pair.order, on)
    certificate.checks += checks
    certificate.negative_controls += controls


def _with_reason(check: Check, reason: str) -> Check:
    """Logits that are equal to rounding say why, and what the stock model does otherwise in one way of running it."""
    told = reason and check.name.startswith("logits,")
    return replace(check, detail=f"{check.detail}; {reason}") if told else check


def _family_twins(pair: Pair) -> Twins | None:
    """Twins through the rows of the native side, if exactly one side is native and both have the same parts."""
    first, second = pair.sides
    if bool(first.config.sparse_layers) != bool(second.config.sparse_layers) or len(pair.natives) != 1:
        return None
    family = pair.natives[0][1]
    if first.family is not None:
        return lambda folder: convert_twin(second.config, family, folder)
    return lambda folder: export_twin(first.config, family, folder)


def _fresh(model: PreTrainedModel) -> bool:
    """Whether the weights look freshly initialised: every vector (norm, bias) is constant, and most faults hide."""
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return all(bool((vector == vector.flatten()[0]).all()) for vector in vectors)

"""Densifying: the experts of each layer become one feed-forward again.

Where all experts of a layer are still what upcycling made of one feed-forward, they give it back, and the function is
kept. Otherwise one answer stands for what a router chose token by token, and what is lost is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from ..conversion.job import Result, Run, RunOptions
from ..conversion.json_files import read_json
from ..conversion.provenance import read_history
from .experts.averaging import Shared
from .experts.dense_from_experts import METHODS, Densifying
from .experts.expert_rows import require_experts, sizes, stored_dtypes
from .experts.expert_usage import observe_experts
from .experts.likeness import Likeness, look
from .experts.whole_numbers import refuse_whole_numbers
from .routers.shaping import home
from .running.operation import RECORD_FILE, Measure, Surgery, arguments, before_reading
from .running.sources import Source
from .running.texts import Texts

UNDECIDED = (
    "whether the function is kept is decided by comparing the experts, which a dry run does not read; a shared expert "
    "whose weights are zero will be dropped"
)


def densify(
    source: str | Path,
    destination: str | Path,
    *,
    method: str = "average",
    expert: int | None = None,
    granularity: int | None = None,
    calibration: Sequence[str | Path] = (),
    to: str = "auto",
    export: bool = False,
    revision: str | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Turn a mixture of experts (native or Moeba) into a dense model. Exact, and proven, for an untrained upcycle.

    Args:
        method: `average` of the experts, `load` (their average, each counted by the tokens that visit it), or `expert`.
        expert: with `expert`, which one (of fine-grained experts: which whole).
        granularity: experts that are parts of one whole feed-forward, to be put together again; default: what the
            folder's surgery.json says, else 1.
        calibration: text files for `load`; also what a gap is measured on.
        to: the native family that must be able to hold the result, or `auto`.
        export: write the native checkpoint itself, in place of a Moeba one.
        run: see `Run`.

    Raises:
        ValueError: the source is dense, an argument does not fit it, or it has a part that no dense model has.
        CertificateError: the proof failed; nothing is published.
    """
    asked = arguments(locals())
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}.")
    if (method == "expert") != (expert is not None):
        raise ValueError(
            f"method={method!r} with expert={expert}: `expert` names the one of method='expert'."
        )
    if method == "load" and not calibration:
        raise ValueError("method='load' needs calibration text files (--calibration FILE).")
    options = Run(**run)
    opened = Source(source, revision)
    require_experts(opened.config, "densify")
    refuse_whole_numbers(opened.tensors, f"densify with method={method!r}")
    texts = Texts.read(calibration) if calibration else None
    parts = granularity if granularity is not None else _recorded_granularity(opened)
    densifying = Densifying(opened.config, method, expert, parts)
    densifying.check()
    measure = Measure(opened, texts)
    if options.dry_run:
        densifying.shared = Shared.KEPT if not opened.config.shared_expert_gate else Shared.DROPPED
        notes, likeness = [UNDECIDED], None
    else:
        before_reading([opened], destination, options)
        likeness = look(opened.config, opened.tensors, parts)
        densifying.settle_shared(likeness)
        notes = _weigh(densifying, likeness, measure)
    densifying.settle()
    family, homeless = home(densifying.config, to, export)
    plan = densifying.plan(opened.tensors)
    plan.notes += [*homeless, *notes]
    exact = likeness is not None and densifying.keeps_function(likeness, stored_dtypes(opened.tensors))
    return Surgery(
        sources=[opened],
        plan=plan,
        config=densifying.config,
        recipe={**asked, "granularity": parts, "texts": texts.digests() if texts else {}},
        family=family,
        twins=densifying.twins if exact else None,
        measure=measure,
        reports=_reports(densifying, likeness),
    ).run(destination, export, options)


def _recorded_granularity(source: Source) -> int:
    """What the upcycle that made the folder says of its experts.

    Raises:
        ValueError: the experts were parts of wholes, and were grown or pruned since.
    """
    folder = source.checkpoint.folder
    steps = read_history(folder)
    if (folder / RECORD_FILE).is_file():
        steps.append(read_json(folder / RECORD_FILE))
    found = 1
    for step in steps:
        if step["operation"] == "upcycle":
            found = int(step["recipe"].get("granularity") or 1)
        elif found > 1 and step["operation"] in ("grow", "prune"):
            raise ValueError(
                f"the experts were parts of a whole, {found} each, and were changed since ({step['operation']}): which "
                "belong together is not known any more. granularity=1 averages them all."
            )
    return found


def _weigh(densifying: Densifying, likeness: Likeness, measure: Measure) -> list[str]:
    """Find out from text what the config does not say: loads, and what weights that are not renormalised add up to."""
    notes: list[str] = []
    if densifying.method != "load" and densifying.weights_sum_to_one:
        return notes
    ids, text = measure.ids()
    usage = observe_experts(measure.source, ids)
    if densifying.method == "load":
        densifying.loads = {layer: found.loads for layer, found in usage.items()}
    if not densifying.weights_sum_to_one:
        densifying.totals = {layer: found.total_weight for layer, found in usage.items()}
        low, high = min(densifying.totals.values()), max(densifying.totals.values())
        notes.append(
            f"the weights of a token's experts do not sum to 1 here: the dense answer counts as much as they do on "
            f"average, {low:.4g} to {high:.4g} by layer ({text})"
        )
    return notes


def _reports(densifying: Densifying, likeness: Likeness | None) -> dict[str, Any]:
    """What the layers were found to be."""
    if likeness is None:
        return {}
    reports: dict[str, Any] = {
        "experts": {
            "layers_with_unequal_experts": len(likeness.unequal),
            "shared_expert": densifying.shared.value
            if any(sizes(densifying.before, "shared_expert_intermediate_size").values())
            else "none",
        }
    }
    if densifying.loads:
        reports["loads"] = {
            str(i): [round(x, 6) for x in loads.tolist()] for i, loads in densifying.loads.items()
        }
    if densifying.totals:
        reports["total_weight"] = {str(i): round(total, 6) for i, total in densifying.totals.items()}
    return reports

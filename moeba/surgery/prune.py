"""Pruning: the experts that matter least on calibration text are taken out, with their router rows.

What is lost is measured. Experts are judged by REAP's saliency (Lasby et al. 2025, arXiv 2510.13999), which asks how
much an expert adds where it is visited, or by how many tokens visit it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from ..configuration import MoebaConfig
from ..conversion.job import Result, Run, RunOptions
from .experts.expert_rows import build_config, plan_rows, require_experts, set_sizes, sizes
from .experts.expert_usage import Usage, observe_experts
from .routers.shaping import home
from .running.operation import Measure, Surgery, arguments, before_reading
from .running.sources import Source
from .running.texts import Texts

METHODS = ("reap", "load")
DECIDED_LATER = "which experts are kept is decided by the calibration text, which a dry run does not read"


def prune(
    source: str | Path,
    destination: str | Path,
    *,
    calibration: Sequence[str | Path],
    keep: int | None = None,
    ratio: float | None = None,
    method: str = "reap",
    uneven: bool = False,
    to: str = "auto",
    export: bool = False,
    revision: str | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Take experts out of a mixture of experts (native or Moeba). The function is not kept; the gap is measured.

    Args:
        calibration: text files that experts are judged on, and the gap is measured on.
        keep, ratio: experts that a layer keeps, or the share that it loses; give one of the two.
        method: `reap` or `load`, see the module.
        uneven: rank the experts of all layers together, each beside its layer's average, so that layers keep different
            numbers of them, at least as many as a token visits. Only Moeba holds the result.
        to: the native family that must be able to hold the result, or `auto`.
        export: write the native checkpoint itself, in place of a Moeba one.
        run: see `Run`.

    Raises:
        ValueError: the source is dense, or an argument does not fit it.
    """
    asked = arguments(locals())
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}.")
    if not calibration:
        raise ValueError("prune judges experts on text: give calibration text files (--calibration FILE).")
    options = Run(**run)
    opened = Source(source, revision)
    config = opened.config
    require_experts(config, "prune")
    counts = kept_counts(config, keep, ratio, uneven)
    texts = Texts.read(calibration)
    chosen, reports = {layer: list(range(count)) for layer, count in counts.items()}, {}
    notes = [DECIDED_LATER]
    if not options.dry_run:
        before_reading([opened], destination, options)
        ids, _ = texts.windows(opened.tokenizer, config.max_position_embeddings)
        usage = observe_experts(opened, ids, saliency=method == "reap")
        scores = {layer: _score(found) for layer, found in usage.items()}
        chosen = choose(scores, counts, sizes(config, "num_experts_per_tok"), config.n_group, uneven)
        reports, notes = _reports(usage, scores, chosen), []
    pruned = _config(config, chosen)
    family, homeless = home(pruned, to, export)
    plan = plan_rows("prune", opened.tensors, pruned, chosen)
    plan.notes += [*homeless, *notes]
    return Surgery(
        sources=[opened],
        plan=plan,
        config=pruned,
        recipe={**asked, "texts": texts.digests(), "kept": chosen},
        family=family,
        measure=Measure(opened, texts),
        reports=reports,
    ).run(destination, export, options)


def kept_counts(
    config: MoebaConfig, keep: int | None, ratio: float | None, uneven: bool = False
) -> dict[int, int]:
    """How many experts each sparse layer keeps (under `uneven`: all layers together as many as these).

    Raises:
        ValueError: neither or both are given, nothing would be taken out, or tokens could not visit as many experts.
    """
    if (keep is None) == (ratio is None):
        raise ValueError(
            "say either keep (experts a layer keeps) or ratio (the share that it loses, such as 0.25)."
        )
    if ratio is not None and not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio} must be between 0 and 1: the share of experts that is taken out.")
    experts, visited = sizes(config, "num_experts"), sizes(config, "num_experts_per_tok")
    if keep is not None:
        said, counts = f"keep={keep}", {layer: min(keep, count) for layer, count in experts.items()}
    else:
        said = f"ratio={ratio}"
        counts = {layer: count - int(count * (ratio or 0.0)) for layer, count in experts.items()}
    if counts == experts:
        raise ValueError(
            f"{said} takes no expert out: the layers have {sorted(set(experts.values()))} experts."
        )
    for layer, count in counts.items():
        if count < visited[layer]:
            raise ValueError(
                f"{said} leaves layer {layer} {count} experts, but each token visits {visited[layer]}: keep at least "
                "as many."
            )
    groups = config.n_group
    if groups > 1 and uneven:
        raise ValueError(
            f"uneven: the experts are in n_group={groups} groups, of equal size in each layer: prune evenly."
        )
    if uneven_layers := [layer for layer, count in counts.items() if count % groups]:
        raise ValueError(
            f"{said} leaves {counts[uneven_layers[0]]} experts a layer, which n_group={groups} groups cannot share "
            "equally: keep a multiple."
        )
    return counts


def choose(
    scores: Mapping[int, torch.Tensor],
    counts: Mapping[int, int],
    visited: Mapping[int, int],
    groups: int = 1,
    uneven: bool = False,
) -> dict[int, list[int]]:
    """The experts of each layer that stay, in their old order; of equal scores the first.

    Args:
        scores: `[experts]` of each layer. visited: experts that a token visits there.
        groups: as many stay of each. uneven: `counts` counts for all layers together.
    """
    if not uneven:
        return {layer: _best(scores[layer], count, groups) for layer, count in counts.items()}
    kept = {layer: _best(scores[layer], visited[layer]) for layer in counts}
    # Answers grow from layer to layer: an expert is compared with its own layer's average first.
    ranked = sorted(
        (-(score / max(scores[layer].mean().item(), 1e-30)), layer, expert)
        for layer in counts
        for expert, score in enumerate(scores[layer].tolist())
        if expert not in kept[layer]
    )
    room = sum(counts.values()) - sum(len(experts) for experts in kept.values())
    for _, layer, expert in ranked[:room]:
        kept[layer].append(expert)
    return {layer: sorted(experts) for layer, experts in kept.items()}


def _best(scores: torch.Tensor, count: int, groups: int = 1) -> list[int]:
    size = len(scores) // groups
    found = []
    for group, members in enumerate(scores.reshape(groups, size)):
        best = members.argsort(descending=True, stable=True)[: count // groups]
        found += [group * size + expert for expert in best.tolist()]
    return sorted(found)


def _score(usage: Usage) -> torch.Tensor:
    return usage.loads if usage.saliency is None else usage.saliency


def _config(config: MoebaConfig, chosen: Mapping[int, Sequence[int]]) -> MoebaConfig:
    values = copy.deepcopy(config.to_dict())
    set_sizes(values, "num_experts", {layer: len(kept) for layer, kept in chosen.items()})
    return build_config(values)


def _reports(
    usage: Mapping[int, Usage], scores: Mapping[int, torch.Tensor], chosen: Mapping[int, Sequence[int]]
) -> dict[str, Any]:
    """A line a layer, then all figures of all experts."""
    layers, figures = {}, {}
    for layer, kept in chosen.items():
        dropped = [expert for expert in range(len(scores[layer])) if expert not in kept]
        layers[str(layer)] = {
            "kept": len(kept),
            "dropped": " ".join(map(str, dropped)),
            "visits_lost": _rounded(usage[layer].loads[dropped].sum()),
        }
        figures[str(layer)] = {
            "loads": [_rounded(load) for load in usage[layer].loads],
            "scores": [_rounded(score) for score in scores[layer]],
        }
    return {"pruned_layers": layers, "experts": figures}


def _rounded(value: torch.Tensor) -> float:
    return float(f"{value.item():.6g}")

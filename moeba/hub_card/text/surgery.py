"""The record that surgery leaves in a model folder, `surgery.json`: recipe, measured gap, reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..reading.records import as_dict, as_dicts, as_float, as_int, as_text, read_record

FILE = "surgery.json"


@dataclass(frozen=True)
class Gap:
    """How far the model is from one source, on the same text; in nats a token."""

    name: str | None  # of the source; None for the whole text
    tokens: int | None
    source_nll: float | None
    target_nll: float | None
    kl: float | None
    top1: float | None  # share of tokens for which both find the same one most likely


@dataclass(frozen=True)
class SurgeryFacts:
    operation: str | None
    is_exact: bool | None
    recipe: Mapping[str, Any]
    recipe_text: str | None  # as the user wrote it
    gap_text: str | None  # what text the gap was measured on
    gaps: tuple[Gap, ...]
    reports: Mapping[str, Any]
    # The weights are still those that the operation wrote; None: no hashes tell.
    is_of_these_weights: bool | None = None


def surgery_facts(folder: Path) -> SurgeryFacts | None:
    record = read_record(folder, FILE)
    if not record:
        return None
    gap = as_dict(record.get("gap"))
    measured = [
        _gap(gap, None),
        *(_gap(item, as_text(item.get("name"))) for item in as_dicts(gap.get("per_source"))),
    ]
    exact = record.get("exact")
    return SurgeryFacts(
        operation=as_text(record.get("operation")),
        is_exact=exact if isinstance(exact, bool) else None,
        recipe=as_dict(record.get("recipe")),
        recipe_text=as_text(record.get("recipe_text")),
        gap_text=as_text(gap.get("text")),
        gaps=tuple(
            item for item in measured if (item.source_nll, item.target_nll, item.kl) != (None, None, None)
        ),
        reports=as_dict(record.get("reports")),
    )


def _gap(figures: Mapping[str, Any], name: str | None) -> Gap:
    return Gap(
        name,
        as_int(figures.get("tokens")),
        *(as_float(figures.get(key)) for key in ("source_nll", "target_nll", "kl", "top1")),
    )


def report_lines(
    reports: Mapping[str, Any], figure: Callable[[Any], str], depth: int = 2
) -> list[tuple[str, str]]:
    """Reports of any shape as pairs of a title and words; `figure` writes one value.

    A list of records, or a record of records, becomes a line for each, down to `depth` levels.
    """
    lines = []
    for key, value in reports.items():
        title = f"layer {key}" if str(key).isdecimal() else str(key).replace("_", " ")
        if value in (None, "", [], {}):
            continue
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = dict(_named(item, place) for place, item in enumerate(value))
        if isinstance(value, dict) and depth > 1 and any(isinstance(item, dict) for item in value.values()):
            lines += [(f"{title}, {name}", words) for name, words in report_lines(value, figure, depth - 1)]
        elif isinstance(value, dict):
            words = ", ".join(f"{str(name).replace('_', ' ')} {figure(item)}" for name, item in value.items())
            lines.append((title, words))
        else:
            lines.append((title, figure(value)))
    return lines


def _named(item: Mapping[str, Any], place: int) -> tuple[str, dict[str, Any]]:
    """What tells an item of a list from the others, and the rest of it."""
    key = next((key for key in ("name", "layer") if key in item), None)
    if key is None:
        return str(place + 1), dict(item)
    title = f"layer {item[key]}" if key == "layer" else str(item[key])
    return title, {name: value for name, value in item.items() if name != key}

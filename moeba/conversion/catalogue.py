"""What can come in and go out, as a table: for `moeba families`, and for the README."""

from __future__ import annotations

from typing import Any

from ..library.window import TESTED
from .config_rows import Only
from .families import FAMILIES, KNOWN_FAMILIES
from .family import Family
from .unsupported import SINCE, UNSUPPORTED

_KINDS = {"dense": "dense", "moe": "MoE"}
BEGIN, END = "<!-- moeba families --markdown -->", "<!-- end of families -->"


def families() -> list[dict[str, Any]]:
    """One entry a supported family, in order of name; also those that the installed transformers does not have yet.

    `exactness` is of float32 logits on a CPU; `reason` says why they are not bit-identical. `refused_unless` maps the
    fields of the native config that are supported at one value only to that value. `needs` names the release of
    transformers that the family has to have, where the installed one is older.
    """
    return [_entry(family) for family in KNOWN_FAMILIES.values()]


def verified_with(since: str = "") -> str:
    """The releases of transformers whose models a family was compared with; the tests run with both."""
    oldest, newest = (version.rpartition(".")[0] for version in TESTED["transformers"])
    first = since or oldest
    return f"transformers {first}" if first == newest else f"transformers {first} to {newest}"


def _entry(family: Family) -> dict[str, Any]:
    return {
        "model_type": family.model_type,
        "aliases": list(family.aliases),
        "architecture": family.architecture,
        "kind": family.kind,
        "directions": ["in", "out"],
        "exactness": "equal to rounding" if family.reordered else "bit-identical",
        "reason": family.reordered,
        "verified_with": verified_with(family.since),
        "since": family.since,
        "needs": "" if family.model_type in FAMILIES else f"transformers {family.since}",
        "refused_unless": {row.their_name: row.value for row in family.config_rows if isinstance(row, Only)},
    }


def unsupported() -> list[dict[str, str]]:
    """One entry a causal language model of transformers that is refused, with the reason.

    `since` is the release that brought it; empty for those of the oldest release that Moeba runs with.
    """
    return [
        {"model_type": name, "reason": reason, "since": SINCE.get(name, "")}
        for name, reason in UNSUPPORTED.items()
    ]


def conditions(entry: dict[str, Any]) -> str:
    """`field=value` for each field that is supported at one value only."""
    return ", ".join(f"{name}={value!r}" for name, value in entry["refused_unless"].items())


def markdown() -> str:
    """The README's table, between its two comment markers: families with the same kind and exactness in one row.

    The same under every release of transformers that Moeba runs with.
    """
    entries = families()
    later: dict[str, list[str]] = {}
    for family in KNOWN_FAMILIES.values():
        if family.since:
            later.setdefault(family.since, []).append(family.model_type)
    names: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        shown = " and ".join((entry["model_type"], *entry["aliases"]))
        names.setdefault((entry["kind"], entry["exactness"]), []).append(shown)
    limits = [
        f"{entry['model_type']} (`{conditions(entry)}`)" for entry in entries if entry["refused_unless"]
    ]
    return "\n".join(
        [
            BEGIN,
            f"{len(entries)} families, in and out, compared with the models of {verified_with()}:",
            "",
            "| kind | exactness | families |",
            "| --- | --- | --- |",
            *(
                f"| {_KINDS[kind]} | {exactness} | {', '.join(listed)} |"
                for (kind, exactness), listed in sorted(names.items())
            ),
            "",
            f"Refused at any other value: {', '.join(limits) or 'nothing'}.",
            *(
                f"\nFrom transformers {since} on: {', '.join(found)}."
                for since, found in sorted(later.items())
            ),
            END,
        ]
    )

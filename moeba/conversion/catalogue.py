"""What can come in and go out, as a table: for `moeba families`, and for the README."""

from __future__ import annotations

from typing import Any

from .config_rows import Only
from .families import FAMILIES
from .family import Family
from .unsupported import UNSUPPORTED

# The version of transformers whose models the families were compared with; the tests run with it.
VERIFIED_WITH = "5.23"
_KINDS = {"dense": "dense", "moe": "MoE"}
BEGIN, END = "<!-- moeba families --markdown -->", "<!-- end of families -->"


def families() -> list[dict[str, Any]]:
    """One entry a supported family, in order of name.

    `exactness` is of float32 logits on a CPU; `reason` says why they are not bit-identical. `refused_unless` maps the
    fields of the native config that are supported at one value only to that value.
    """
    return [_entry(family) for family in FAMILIES.values()]


def _entry(family: Family) -> dict[str, Any]:
    return {
        "model_type": family.model_type,
        "architecture": family.architecture,
        "kind": family.kind,
        "directions": ["in", "out"],
        "exactness": "equal to rounding" if family.reordered else "bit-identical",
        "reason": family.reordered,
        "verified_with": f"transformers {VERIFIED_WITH}",
        "refused_unless": {row.their_name: row.value for row in family.config_rows if isinstance(row, Only)},
    }


def unsupported() -> list[dict[str, str]]:
    """One entry a causal language model of transformers that is refused, with the reason."""
    return [{"model_type": name, "reason": reason} for name, reason in UNSUPPORTED.items()]


def conditions(entry: dict[str, Any]) -> str:
    """`field=value` for each field that is supported at one value only."""
    return ", ".join(f"{name}={value!r}" for name, value in entry["refused_unless"].items())


def markdown() -> str:
    """The README's table, between its two comment markers: families with the same kind and exactness in one row."""
    entries = families()
    names: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        names.setdefault((entry["kind"], entry["exactness"]), []).append(entry["model_type"])
    limits = [
        f"{entry['model_type']} (`{conditions(entry)}`)" for entry in entries if entry["refused_unless"]
    ]
    return "\n".join(
        [
            BEGIN,
            f"{len(entries)} families, in and out, compared with the models of transformers {VERIFIED_WITH}:",
            "",
            "| kind | exactness | families |",
            "| --- | --- | --- |",
            *(
                f"| {_KINDS[kind]} | {exactness} | {', '.join(listed)} |"
                for (kind, exactness), listed in sorted(names.items())
            ),
            "",
            f"Refused at any other value: {', '.join(limits) or 'nothing'}.",
            END,
        ]
    )

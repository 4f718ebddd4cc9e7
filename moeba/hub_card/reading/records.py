"""The records that operations leave in a model folder: provenance and certificate.

Their writers and versions differ: a value of another type than expected is an absent fact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...conversion.binding import changes_since, code_changes
from ...conversion.json_files import read_json
from ...conversion.provenance import CERTIFICATE_FILE, OWN_FILES
from ...conversion.selection import names_only

Outcome = Literal["verified", "gap", "failed", "void", "changed", "other weights", "unreadable"]

ROUTER_MAKERS = frozenset(("upcycle", "merge", "split"))
"""Operations that put a router where there was none."""


@dataclass(frozen=True)
class SourceFacts:
    """A model that an operation read. `name` is a Hub id or the last part of a path: the rest is private."""

    name: str | None
    repo_id: str | None
    base_models: tuple[str, ...]  # Hub ids: `repo_id`, or those that were declared
    revision: str | None
    model_type: str | None
    license: str | None
    license_name: str | None
    license_link: str | None
    languages: tuple[str, ...]
    datasets: tuple[str, ...]
    files: Mapping[str, str]  # name -> sha256


@dataclass(frozen=True)
class StepFacts:
    """One operation of the model's history."""

    operation: str
    versions: Mapping[str, str]
    sources: tuple[SourceFacts, ...]
    recipe: Mapping[str, Any]
    notes: tuple[str, ...]
    target_files: Mapping[str, str]  # what it wrote, name -> sha256; empty if not recorded
    is_lossy: bool


@dataclass(frozen=True)
class Check:
    """One comparison, `on` the checkpoint's own weights or on those of a small randomised twin."""

    name: str
    on: str
    status: str
    figures: Mapping[str, Any]
    detail: str


@dataclass(frozen=True)
class Control:
    """A fault planted on purpose, which a certificate has to notice."""

    fault: str
    caught: bool
    max_abs_diff: float | None


@dataclass(frozen=True)
class CertificateFacts:
    """What parity.json says, and whether it is about what lies beside it.

    `changes` has a line for each file that decides the function and is not as it was proven; `is_bound` says whether
    the record tells such files at all (those of older releases name the weights alone).
    """

    verdict: str  # as the file says
    operation: str | None
    is_lossy: bool
    is_of_these_weights: bool | None  # None: it names no weight file by hash
    versions: Mapping[str, str]
    checks: tuple[Check, ...]
    controls: tuple[Control, ...]
    config_differences: tuple[Mapping[str, Any], ...]
    keys: Mapping[str, Any]
    first_divergence: str | None
    target_files: Mapping[str, str]
    changes: tuple[str, ...] = ()
    is_bound: bool = False
    problem: str = ""  # why the file cannot be read

    @property
    def outcome(self) -> Outcome:
        """What it is worth to whoever reads the folder: the card, `bundle`, `push` and `inspect` say this and no more.

        Unreadable, of other weights or files, or having missed a planted fault, it proves nothing.
        """
        if self.problem:
            return "unreadable"
        if self.is_of_these_weights is False:
            return "other weights"
        if self.changes:
            return "changed"
        if self.verdict == "void" or not all(control.caught for control in self.controls):
            return "void"
        if self.is_lossy:
            return "gap"
        passed = self.verdict == "verified" and all(check.status != "failed" for check in self.checks)
        return "verified" if passed else "failed"


def step_facts(provenance: Mapping[str, Any]) -> tuple[StepFacts, ...]:
    """The steps of a provenance file, oldest first."""
    steps = [*as_dicts(provenance.get("history")), provenance] if provenance else []
    return tuple(
        StepFacts(
            operation=as_text(step.get("operation")) or "unknown operation",
            versions=as_texts_of(
                {key.removesuffix("_version"): step[key] for key in step if key.endswith("_version")}
            ),
            sources=tuple(_source_facts(source, step) for source in _sources(step)),
            recipe=as_dict(step.get("recipe")),
            notes=tuple(as_texts(step.get("notes"))),
            target_files=as_texts_of(as_dict(as_dict(step.get("target")).get("files"))),
            is_lossy=bool(step.get("lossy")),
        )
        for step in steps
    )


def _sources(step: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One source or several, under either name."""
    both = (step.get("source"), step.get("sources"))
    return [source for value in both for source in ([value] if isinstance(value, dict) else as_dicts(value))]


def _source_facts(source: Mapping[str, Any], step: Mapping[str, Any]) -> SourceFacts:
    repo_id, path = as_text(source.get("repo_id")), as_text(source.get("path"))
    declared = source.get("base_model") or step.get("base_model")
    return SourceFacts(
        name=repo_id or (path.rstrip("/\\").replace("\\", "/").split("/")[-1] if path else None),
        repo_id=repo_id,
        base_models=(repo_id,) if repo_id else tuple(_listed(declared)),
        revision=as_text(source.get("revision")),
        model_type=as_text(source.get("model_type")),
        license=as_text(source.get("license")),
        license_name=as_text(source.get("license_name")),
        license_link=as_text(source.get("license_link")),
        languages=tuple(_listed(source.get("language"))),
        datasets=tuple(_listed(source.get("datasets"))),
        files=as_texts_of(as_dict(source.get("files"))),
    )


def _listed(value: object) -> list[str]:
    """Texts that a card gives as a list, or alone."""
    return as_texts([value] if isinstance(value, str) else value)


def read_certificate(folder: Path) -> CertificateFacts | None:
    """The certificate in a folder, and what changed since of the files that it binds beside the weights.

    One that cannot be read is no absent fact: a card may still show what it once said.
    """
    path = folder / CERTIFICATE_FILE
    if not path.exists() and not path.is_symlink():
        return None
    try:
        values = read_json(path)
    except (ValueError, OSError) as error:
        told = " ".join(str(error).split()).replace(str(path), CERTIFICATE_FILE)
        return replace(certificate_facts({}), problem=told)
    target = as_dict(values.get("target"))
    bound = as_dict(target.get("bound"))
    changes = changes_since(folder, bound) if bound else ()
    if code := as_text(target.get("code")):
        changes += code_changes(folder, code)
    return replace(certificate_facts(values), is_bound=bool(bound), changes=changes)


def certificate_facts(values: Mapping[str, Any]) -> CertificateFacts:
    return CertificateFacts(
        verdict=as_text(values.get("verdict")) or "unverified",
        operation=as_text(values.get("operation")),
        is_lossy=bool(values.get("lossy")),
        is_of_these_weights=None,
        versions=as_texts_of(as_dict(values.get("versions"))),
        checks=tuple(
            Check(
                name=as_text(check.get("name")) or "unnamed check",
                on=as_text(check.get("on")) or "",
                status=as_text(check.get("status")) or "unverified",
                figures=as_dict(check.get("figures")),
                detail=as_text(check.get("detail")) or "",
            )
            for check in as_dicts(values.get("checks"))
        ),
        controls=tuple(
            Control(
                fault=as_text(control.get("fault")) or "unnamed fault",
                caught=control.get("caught") is True,
                max_abs_diff=as_float(control.get("max_abs_diff")),
            )
            for control in as_dicts(values.get("negative_controls"))
        ),
        config_differences=tuple(as_dicts(values.get("config_differences"))),
        keys=as_dict(values.get("keys")),
        first_divergence=as_text(values.get("first_divergence")),
        target_files=as_texts_of(as_dict(as_dict(values.get("target")).get("files"))),
    )


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of the folder; empty without one. In records of Moeba, paths are names."""
    path = folder / name
    if not path.is_file():
        return {}
    return dict(names_only(read_json(path))) if name in OWN_FILES else read_json(path)


def as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def as_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def as_texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


def as_texts_of(value: Mapping[str, Any]) -> dict[str, str]:
    return {key: text for key, text in value.items() if isinstance(text, str)}


def as_int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def as_json(value: object, indent: int | None = None) -> str:
    """JSON text with keys in the order of the file."""
    return json.dumps(value, indent=indent, ensure_ascii=False)

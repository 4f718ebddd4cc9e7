"""How the result of an operation is said: its plan, or what was written and proven."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from .console import NOT_CERTIFIED, emit, note, say


def show(result: Any, as_json: bool) -> None:
    """Say what came of an operation; exit with 3 unless what was to be proven is."""
    if as_json:
        emit(_as_dict(result))
    elif result.report is None:
        _say_plan(result)
    else:
        _say_result(result)
    if result.certificate is not None:
        exit_by(result.certificate)


def exit_by(certificate: Any) -> None:
    """Exit with 3 unless the verdict is `verified`."""
    if certificate.verdict != "verified":
        raise typer.Exit(NOT_CERTIFIED)


def say_lines(lines: list[str]) -> None:
    """Lines of a result."""
    for line in lines:
        say(line)


def _as_dict(result: Any) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "plan": result.plan.summary(),
        "steps": result.plan.describe() if result.report is None else None,
        "report": None if result.report is None else asdict(result.report),
        "certificate": None if result.certificate is None else result.certificate.to_dict(),
        "gap": result.gap,
        "left_out": {left.path: left.reason for left in result.left_out},
    }


def _say_plan(result: Any) -> None:
    say_lines(result.plan.describe())
    _say_left_out(result)
    summary = result.plan.summary()
    note(
        f"A plan: {summary['source_tensors']} tensors in, {summary['target_tensors']} out, "
        f"{summary['target_bytes'] / 1e6:,.1f} MB, {summary['target_model_type']}. Nothing was written."
    )


def _say_result(result: Any) -> None:
    report = result.report
    kept = f", {report.reused_shards} kept from an interrupted run" if report.reused_shards else ""
    for text in result.plan.summary()["notes"]:
        note(f"note: {text}")
    _say_left_out(result)
    if result.certificate is not None:
        for line in result.certificate.lines():
            note(line)
    if result.gap is not None:
        from ..surgery.running.gap import describe_gap

        for line in describe_gap(result.gap):
            note(f"not the same function: {line}")
    say(
        f"{result.folder}: {report.tensors} tensors in {report.shards} weight files{kept}, "
        f"{report.bytes_written / 1e6:,.1f} MB written in {report.seconds:.1f} s"
    )


def _say_left_out(result: Any) -> None:
    if result.left_out:
        from ..conversion.json_files import listing

        left = listing([f"{left.path} ({left.reason})" for left in result.left_out])
        note(f"note: not carried over from the source: {left}")

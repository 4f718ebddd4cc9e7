"""Verbs that translate or compare checkpoints: convert, export, certify; and how all operations report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import NOT_CERTIFIED, bytes_bar, emit, err, named_path, note, say

Source = Annotated[str, typer.Argument(help="A model folder, or a Hub id such as user/name.", metavar="SRC")]
Destination = Annotated[Path, typer.Argument(help="The folder to appear.", metavar="DST", parser=named_path)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan; read no tensor and write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is at DST.")]
NoCertify = Annotated[bool, typer.Option("--no-certify", help="Skip the proof that the function was kept.")]
ShardSize = Annotated[str, typer.Option(help="Most bytes of one weight file.", metavar="SIZE")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def convert(
    source: Source,
    destination: Destination,
    revision: Revision = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a config.json with keys that transformers does not read.")
    ] = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    no_certify: NoCertify = False,
    max_shard_size: ShardSize = "5GB",
    as_json: Json = False,
) -> None:
    """Turn a native checkpoint into a Moeba one that computes the same function.

    Every field that decides the function and every tensor is mapped, or the conversion is refused and each
    obstacle named; keys that transformers does not read are kept and reported. The result is compared with
    its source, logits and gradients, on inputs chosen from the config; faults planted on purpose must be
    caught. An interrupted run continues where it stopped.

    Example: `moeba convert meta-llama/Llama-3.2-1B llama-moeba`
    """
    from ..conversion import convert as operation

    settings = common(no_certify, overwrite, dry_run, max_shard_size) | {
        "revision": revision,
        "strict": strict,
    }
    perform(lambda progress: operation(source, destination, progress=progress, **settings), as_json)


def export(
    source: Source,
    destination: Destination,
    to: Annotated[
        str, typer.Option(help="A family of `moeba families`, or auto: the first that can hold the model.")
    ] = "auto",
    revision: Revision = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    no_certify: NoCertify = False,
    max_shard_size: ShardSize = "5GB",
    as_json: Json = False,
) -> None:
    """Turn a Moeba checkpoint into a native one, with the tensor names that serving engines read.

    The family must be able to hold the model exactly; what it cannot hold is named. The result is reloaded
    with stock transformers and compared with its source.

    Example: `moeba export my-moe my-mixtral --to mixtral`
    """
    from ..conversion import export as operation

    settings = common(no_certify, overwrite, dry_run, max_shard_size) | {"revision": revision}
    perform(lambda progress: operation(source, destination, to=to, progress=progress, **settings), as_json)


def certify(
    source: Source,
    target: Annotated[str, typer.Argument(help="The folder or Hub id that should equal it.", metavar="DST")],
    output: Annotated[Path | None, typer.Option(help="Write the certificate to this JSON file.")] = None,
    as_json: Json = False,
) -> None:
    """Prove, or disprove, that two checkpoints compute the same function.

    Configs, tensors, tokenizers, logits, hidden states and gradients are compared, and faults planted on
    purpose must be caught, or the certificate is void. Exits with 3 unless the verdict is `verified`.

    Example: `moeba certify my-llama my-moeba --output parity.json`
    """
    from ..conversion import certify as operation

    with err().status("comparing"):
        certificate = operation(source, target, output=output)
    emit(certificate.to_dict()) if as_json else _say_lines(certificate.lines())
    _exit_by(certificate)


VERBS = (convert, export, certify)


def common(no_certify: bool, overwrite: bool, dry_run: bool, max_shard_size: str) -> dict[str, Any]:
    """The options of every operation, by the names of its Python call."""
    return {
        "certificate": not no_certify,
        "overwrite": overwrite,
        "dry_run": dry_run,
        "max_shard_size": max_shard_size,
    }


def perform(operation: Callable[[Callable[[int, int, str], None]], Any], as_json: bool) -> None:
    """Run an operation under a bar, and say what came of it."""
    with bytes_bar("writing") as progress:
        result = operation(progress)
    if as_json:
        emit(_as_dict(result))
    elif result.report is None:
        _say_plan(result)
    else:
        _say_result(result)
    if result.certificate is not None:
        _exit_by(result.certificate)


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
    _say_lines(result.plan.describe())
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


def _say_lines(lines: list[str]) -> None:
    for line in lines:
        say(line)


def _exit_by(certificate: Any) -> None:
    if certificate.verdict != "verified":
        raise typer.Exit(NOT_CERTIFIED)

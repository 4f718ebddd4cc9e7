"""Verbs that translate or compare checkpoints: convert, export, certify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import emit, err
from .operations import Destination, Json, Revision, Source, operation
from .results import exit_by, say_lines


@operation("conversion")
def convert(
    source: Source,
    destination: Destination,
    revision: Revision = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a config.json with keys that transformers does not read.")
    ] = False,
) -> None:
    """Turn a native checkpoint into a Moeba one that computes the same function.

    Every field that decides the function and every tensor is mapped, or the conversion is refused and each
    obstacle named; keys that transformers does not read are kept and reported. The result is compared with
    its source, logits and gradients, on inputs chosen from the config; faults planted on purpose must be
    caught. An interrupted run continues where it stopped.

    Example: `moeba convert meta-llama/Llama-3.2-1B llama-moeba`
    """


@operation("conversion")
def export(
    source: Source,
    destination: Destination,
    to: Annotated[
        str, typer.Option(help="A family of `moeba families`, or auto: the first that can hold the model.")
    ] = "auto",
    revision: Revision = None,
) -> None:
    """Turn a Moeba checkpoint into a native one, with the tensor names that serving engines read.

    The family must be able to hold the model exactly; what it cannot hold is named. The result is reloaded
    with stock transformers and compared with its source.

    Example: `moeba export my-moe my-mixtral --to mixtral`
    """


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
    from ..conversion import certify as prove

    with err().status("comparing"):
        certificate = prove(source, target, output=output)
    emit(certificate.to_dict()) if as_json else say_lines(certificate.lines())
    exit_by(certificate)


VERBS = (convert, export, certify)

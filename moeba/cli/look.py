"""Verbs that look at models and change nothing: inspect, generate, families."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.table import Table

from .console import emit, note, out
from .operations import Json

Model = Annotated[str, typer.Argument(help="A model folder, native or Moeba, or a Hub id.", metavar="DIR")]


def inspect(
    model: Model,
    hash_all: Annotated[
        bool,
        typer.Option("--hash", help="Hash weights of any size, to tell whether they are the proven ones."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a model is: its parts in plain words, sizes, layers, files, and where it comes from.

    Reads the config and the headers of the weight files. A certificate counts for the files that it was made of:
    config, generation settings and tokenizer are compared with it, and weights of up to 2 GB are hashed; larger ones
    with `--hash`. Native folders of the supported families are shown in the same words as Moeba's own.

    Example: `moeba inspect my-moe`
    """
    from ..conversion import resolve
    from .inspection import inspect_folder

    facts = inspect_folder(resolve(model, any_type=True), hash_all)
    if as_json:
        emit(facts)
        return
    table = _two_columns(facts["folder"])
    for name, value in _rows(facts):
        table.add_row(name, value)
    out().print(table)


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text to go on from.", metavar="PROMPT")],
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to add.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.", min=0.0)] = 0.7,
    top_p: Annotated[
        float,
        typer.Option(help="Draw from the likeliest tokens of this summed probability.", min=0.0, max=1.0),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt through the chat template.")] = False,
    as_json: Json = False,
) -> None:
    """Continue a text with a model, word by word as it comes.

    Works with any folder that transformers can load, native or Moeba, so a model can be tried before and
    after a conversion. With `--chat` the prompt is a user's message and only the answer is printed.

    Example: `moeba generate my-moe "Once upon a time" --max-new-tokens 50`
    """
    from .generation import continue_text

    text = continue_text(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        chat=chat,
        stream=not as_json,
    )
    if as_json:
        emit({"model": model, "prompt": prompt, "text": text})


def families(
    show_unsupported: Annotated[
        bool, typer.Option("--unsupported", help="List the model types that are refused, and why.")
    ] = False,
    holds: Annotated[
        str | None,
        typer.Option(
            help="Tell of each family whether it can hold this model, and what is in the way.", metavar="DIR"
        ),
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the README.")] = False,
    as_json: Json = False,
) -> None:
    """List the native model families that Moeba converts from and exports to, and how exactly.

    Bit-identical means that float32 logits on a CPU are the same bits as the stock model's, where the weights of both
    are aligned alike in memory. Where they are equal to rounding, `--json` says why. A field in the last column is
    refused at any other value; a family that the installed transformers does not have yet is listed with the release
    that it needs.

    Example: `moeba families --unsupported`

    Where a model can go: `moeba families --holds my-moe`
    """
    from ..conversion import catalogue

    if holds is not None:
        _say_obstacles(holds, as_json)
        return
    if as_markdown:
        sys.stdout.write(catalogue.markdown() + "\n")
        return
    listed = catalogue.unsupported() if show_unsupported else catalogue.families()
    if as_json:
        emit(listed)
        return
    table = Table(box=None, pad_edge=False)
    titles = (
        ("model type", "reason") if show_unsupported else ("family", "kind", "exactness", "refused unless")
    )
    for title in titles:
        table.add_column(title, overflow="fold")
    for entry in listed:
        if show_unsupported:
            table.add_row(entry["model_type"], entry["reason"])
        else:
            limits = [f"needs {entry['needs']}"] if entry["needs"] else []
            limits += [conditions] if (conditions := catalogue.conditions(entry)) else []
            table.add_row(entry["model_type"], entry["kind"], entry["exactness"], ", ".join(limits))
    out().print(table)
    if not show_unsupported:
        note(f"Verified with {catalogue.verified_with()}. --unsupported lists what is refused, and why.")


def _say_obstacles(model: str, as_json: bool) -> None:
    """Families that hold the model first, those that engines serve most before the others."""
    from ..conversion.targets import obstacles
    from ..surgery.running.sources import Source

    found = obstacles(Source(model).config)
    if as_json:
        emit(found)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("family", "holds the model", "in the way"):
        table.add_column(title, overflow="fold")
    for name, reason in sorted(found.items(), key=lambda item: bool(item[1])):
        table.add_row(
            name, "no" if reason else "yes", reason.removeprefix(f"'{name}' cannot hold this model: ")
        )
    out().print(table)


VERBS = (inspect, generate, families)


def _two_columns(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    architectures = ", ".join(facts["architectures"] or [])
    rows = [("Model type", f"{facts['model_type']} {f'({architectures})' if architectures else ''}".strip())]
    if facts["unsupported"]:
        rows.append(("Not supported", facts["unsupported"]))
    else:
        sizes = facts["parameters"]
        rows += facts["parts"].items()
        rows += [("Serving", facts["serving"])] if facts["serving"] else []
        rows.append(("Parameters", f"{sizes['total']:,} in all, {sizes['active']:,} active for one token"))
        rows += [(_layer_range(run), run["kind"]) for run in facts["layers"]]
    rows += _file_rows(facts)
    rows += [("Made by", _operation(step)) for step in facts["provenance"]]
    certificate = facts["certificate"]
    rows.append(("Certificate", _certificate(certificate) if certificate else "none"))
    return rows


def _certificate(found: dict[str, Any]) -> str:
    words = f"{found['verdict']} ({found['operation'] or 'unknown operation'})"
    if found["verdict"] == "other weights":
        words += ": it was made of other weights than these"
    if found["problem"]:
        words += f": {found['problem']}"
    if found["changes"]:
        words += f" since the proof: {'; '.join(found['changes'])}"
    if found["weights_not_read"]:
        words += (
            f"; recorded as {found['recorded']}, and {found['weights_not_read'] / 1e9:,.1f} GB of weights were not "
            "read: --hash does"
        )
    return words + (f"; checked: {', '.join(found['checked'])}" if found["checked"] else "")


def _layer_range(run: dict[str, Any]) -> str:
    if run["first"] == run["last"]:
        return f"Layer {run['first']}"
    return f"Layers {run['first']}-{run['last']}"


def _file_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    weights, tokenizer = facts["weights"], facts["tokenizer"]
    size = sum(weights["files"].values())
    names = list(weights["files"])
    files = names if len(names) < 4 else [names[0], "…", names[-1]]
    stored = ", ".join(f"{count:,} in {dtype}" for dtype, count in weights["dtypes"].items())
    rows = [
        ("Weights", f"{weights['tensors']} tensors, {size / 1e6:,.1f} MB in {', '.join(files)}"),
        ("Values", stored),
    ]
    if tokenizer is None:
        rows.append(("Tokenizer", "none"))
    else:
        template = "with" if tokenizer["chat_template"] else "without"
        rows.append(("Tokenizer", f"{tokenizer['class'] or 'of unknown class'}, {template} a chat template"))
    return rows


def _operation(step: dict[str, Any]) -> str:
    origin = f"{step['source']} ({step['source_model_type']})"
    return f"{step['operation']} from {origin} with moeba {step['moeba_version']}"

"""The verb that measures models: evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from .console import bytes_bar, count_bar, emit, note, out, quiet_datasets
from .operations import Json

Models = Annotated[
    list[str],
    typer.Argument(
        help="Model folders, native or Moeba, or Hub ids; the first is compared with.", metavar="MODEL..."
    ),
]


def evaluate(
    models: Models,
    dataset: Annotated[
        str, typer.Option(help="A .txt, .jsonl, .json, .csv, .tsv or .parquet file, or a Hub id.")
    ],
    config: Annotated[str | None, typer.Option(help="Of a Hub dataset that has several.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a Hub dataset; test if not given.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub dataset.")] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read rows as they are needed, download nothing before.")
    ] = False,
    max_rows: Annotated[int | None, typer.Option(help="Read only so many rows.", min=1)] = None,
    field: Annotated[str, typer.Option(help="The field with a row's text; each row is a document.")] = "text",
    join: Annotated[
        str | None,
        typer.Option(help=r"Make one document of all rows, with this between them, such as '\n\n'."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Cut the text after so many tokens of the first model.", min=1)
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="For questions with choices: the question, such as '{question}'.")
    ] = None,
    choices: Annotated[str | None, typer.Option(help="The field with a question's choices.")] = None,
    label: Annotated[str | None, typer.Option(help="The field with the right one.")] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens of an input; all that the models take, up to 2048.", min=2)
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens that a window predicts, the others are context; half of it.", min=1),
    ] = None,
    bos: Annotated[
        bool, typer.Option(help="Start each window of text with a BOS (or else EOS) token.")
    ] = True,
    batch_size: Annotated[int, typer.Option(help="Windows at a time.", min=1)] = 8,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with a model.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Write evaluation.json into each folder, for its model card.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how well models predict a text, or answer questions; several are compared on the same data.

    Each token is predicted once, with the text before it as context. Bits per byte compare models of any
    tokenizers, perplexity only those of the same. With `--prompt`, `--choices` and `--label`, the likeliest
    choice is the answer, and accuracy is measured.

    Example: `moeba evaluate my-llama my-moeba --dataset book.txt --window 1024 --stride 512`
    """
    quiet_datasets("evaluating", "evaluate")
    from ..evaluation import evaluate as operation

    is_choice = prompt is not None
    bar: Callable[[str], AbstractContextManager[Any]] = count_bar if is_choice else bytes_bar
    with bar("evaluating") as progress:
        found = operation(
            models,
            dataset,
            config=config,
            split=split,
            revision=revision,
            streaming=streaming,
            max_rows=max_rows,
            field=field,
            join=_unescaped(join),
            max_tokens=max_tokens,
            prompt=_unescaped(prompt),
            choices=choices,
            label=label,
            window=window,
            stride=stride,
            bos=bos,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            save_results=save,
            progress=progress,
        )
    if as_json:
        emit([asdict(evaluation) for evaluation in found])
    else:
        _show(models, found)


VERBS = (evaluate,)


def _unescaped(text: str | None) -> str | None:
    """Line breaks and tabs as one can type them in a shell."""
    return None if text is None else text.replace("\\n", "\n").replace("\\t", "\t")


def _show(models: Sequence[str], evaluations: Sequence[Any]) -> None:
    """A row a figure and a column a model; beside each but the first, how much it differs from that."""
    first = evaluations[0]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for index, name in enumerate(models):
        table.add_column(name, justify="right", overflow="fold")
        if index:
            table.add_column("difference", justify="right")
    for figure, value in {**first.metrics, **first.counts}.items():
        cells = [_words(value, first.errors.get(figure))]
        for other in evaluations[1:]:
            found = {**other.metrics, **other.counts}[figure]
            cells += [_words(found, other.errors.get(figure)), _difference(found, value)]
        table.add_row(figure.replace("_", " "), *cells)
    out().print(table)
    settings = first.settings
    note(
        f"{_dataset(first.dataset)}, windows of {settings['window']} tokens"
        + (f", {settings['stride']} predicted by each" if "stride" in settings else "")
        + f", {settings['dtype']} on {settings['device']}."
    )


def _dataset(source: Any) -> str:
    parts = [source.get("id") or source["name"], source.get("config"), source.get("split")]
    return " ".join(part for part in parts if part)


def _words(value: float | int | None, error: float | None) -> str:
    if value is None:
        return "not known"
    words = f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
    return words if error is None else f"{words} ± {error:.2g}"


def _difference(value: float | int | None, reference: float | int | None) -> str:
    if value is None or reference is None:
        return ""
    difference = value - reference
    return (
        "0" if not difference else f"{difference:+,}" if isinstance(difference, int) else f"{difference:+.3g}"
    )

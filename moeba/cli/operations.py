"""What the verbs that write a checkpoint share: their arguments, the options of every run, and how they run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import bytes_bar, named_path
from .results import show

Source = Annotated[str, typer.Argument(help="A model folder, or a Hub id such as user/name.", metavar="SRC")]
Destination = Annotated[Path, typer.Argument(help="The folder to appear.", metavar="DST", parser=named_path)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is at DST.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def _of_every_run(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan; read no tensor and write nothing.")
    ] = False,
    overwrite: Overwrite = False,
    no_certify: Annotated[
        bool, typer.Option("--no-certify", help="Skip the proof that the function was kept.")
    ] = False,
    max_shard_size: Annotated[
        str, typer.Option(help="Most bytes of one weight file.", metavar="SIZE")
    ] = "5GB",
    as_json: Json = False,
) -> tuple[dict[str, Any], bool]:
    """The options of every run, by the names of `conversion.job.Run`; and whether the result is for a program."""
    run = {
        "certificate": not no_certify,
        "overwrite": overwrite,
        "dry_run": dry_run,
        "max_shard_size": max_shard_size,
    }
    return run, as_json


def operation(room: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a verb of a function that only declares: its parameters are those of the operation of that name in a room.

    The options of every run come behind them. What is not given is left to the operation.
    """

    def verb_of(declared: Callable[..., None]) -> Callable[..., None]:
        own, common = (inspect.signature(one, eval_str=True).parameters for one in (declared, _of_every_run))

        def verb(**given: Any) -> None:
            run, as_json = _of_every_run(**{name: given.pop(name) for name in common})
            settings = run | {name: value for name, value in given.items() if value is not None}
            function = getattr(import_module(f"moeba.{room}"), declared.__name__)
            with bytes_bar("writing") as progress:
                result = function(progress=progress, **settings)
            show(result, as_json)

        verb.__name__, verb.__doc__ = declared.__name__, declared.__doc__
        parameters = [*own.values(), *common.values()]
        verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        verb.__annotations__ = {item.name: item.annotation for item in parameters}
        return verb

    return verb_of

"""Verbs that make a folder ready for others: bundle, card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .checkpoints import Overwrite
from .console import say


def bundle(
    source: Annotated[Path, typer.Argument(help="A Moeba folder.", metavar="SRC")],
    destination: Annotated[Path, typer.Argument(help="The folder to appear.", metavar="DST")],
    overwrite: Overwrite = False,
) -> None:
    """Make a folder that can be uploaded to the Hub and loads where Moeba is not installed.

    Weights, tokenizer and certificate are carried over; the model's code and its card are written beside
    them. Upload the folder with `hf upload`, and load it with `trust_remote_code=True`.

    Example: `moeba bundle my-moe my-moe-hub`
    """
    from ..hub_card import bundle as operation

    folder = operation(source, destination, overwrite=overwrite)
    say(f"{folder}: {sum(path.is_file() for path in folder.rglob('*'))} files")


def card(
    folder: Annotated[Path, typer.Argument(help="A model folder.", metavar="FOLDER")],
) -> None:
    """Write the model card, README.md, of a folder from what its files say.

    Architecture, sizes, where the weights come from and what its certificate proves are read off the folder;
    nothing is invented. Run it again after training.

    Example: `moeba card my-moe`
    """
    from ..hub_card import write_card

    say(str(write_card(folder)))


VERBS = (bundle, card)

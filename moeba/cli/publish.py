"""Verbs that make a folder ready for others, and send it: bundle, card, push."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from .console import emit, err, named_path, note, say
from .operations import Json, Overwrite

_OF_A_MODEL = ("config.json", "adapter_config.json")


def bundle(
    source: Annotated[Path, typer.Argument(help="A Moeba folder.", metavar="SRC", parser=named_path)],
    destination: Annotated[
        Path, typer.Argument(help="The folder to appear.", metavar="DST", parser=named_path)
    ],
    overwrite: Overwrite = False,
    hardlink: Annotated[
        bool,
        typer.Option(
            "--hardlink", help="Link the weights: no space, but what is written into them changes SRC too."
        ),
    ] = False,
) -> None:
    """Make a folder that can be uploaded to the Hub and loads where Moeba is not installed.

    Weights, tokenizer, licences and certificate are carried over; the model's code and its card are written
    beside them. What else lies in the folder stays there, and is named. Upload the folder with `hf upload`, and
    load it with `trust_remote_code=True`.

    Example: `moeba bundle my-moe my-moe-hub`
    """
    from ..conversion.checkpoint import Checkpoint
    from ..hub_card import bundle as operation
    from .inspection import serving

    folder = operation(source, destination, overwrite=overwrite, hardlink=hardlink)
    say(f"{folder}: {sum(path.is_file() for path in folder.rglob('*'))} files")
    if words := serving(Checkpoint(folder)):
        note(f"note: {words}")


def card(
    folder: Annotated[Path, typer.Argument(help="A model folder.", metavar="FOLDER", parser=named_path)],
) -> None:
    """Write the model card, README.md, of a folder from what its files say.

    Architecture, sizes, where the weights come from and what its certificate proves are read off the folder;
    nothing is invented. Run it again after training.

    Example: `moeba card my-moe`
    """
    from ..hub_card import write_card

    if folder.is_dir() and not any((folder / name).is_file() for name in _OF_A_MODEL):
        raise ValueError(f"{folder.resolve()} holds no model: there is no {' or '.join(_OF_A_MODEL)} in it")
    say(str(write_card(folder)))


def push(
    folder: Annotated[Path, typer.Argument(help="A model folder.", metavar="FOLDER", parser=named_path)],
    repo_id: Annotated[
        str, typer.Argument(help="user/name, or a name of your own; created if it is new.", metavar="REPO")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Create the repository private; default what its owner has set.")
    ] = False,
    branch: Annotated[
        str | None, typer.Option(help="The branch to commit to; created if it is new.", metavar="NAME")
    ] = None,
    pr: Annotated[bool, typer.Option("--pr", help="Open a pull request instead of committing.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    include_training: Annotated[
        bool, typer.Option("--include-training", help="Also checkpoints and optimiser states of a Trainer.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files and sizes; send nothing, write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Push a model folder to the Hub in one commit, with its code and a renewed card.

    It then loads with `trust_remote_code=True` where Moeba is not installed. Words that a person wrote in the
    card, here or on the Hub, stay. Secrets and links to elsewhere are refused; caches, optimiser states and code
    of others stay behind. After an interruption, push again: what arrived is not sent twice.

    Example: `moeba push my-moe me/my-moe --private`
    """
    from huggingface_hub.utils import enable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error

    from ..hub_card import push as operation
    from ..hub_card.text.words import byte_size

    set_verbosity_error()  # its retries; what becomes of them is said below
    if err().is_terminal and not as_json:
        enable_progress_bars()
    result = operation(
        folder,
        repo_id,
        private=private or None,
        branch=branch,
        pr=pr,
        message=message,
        include_training=include_training,
        dry_run=dry_run,
    )
    commit = result.commit
    if as_json:
        where = None if commit is None else {"url": commit.pr_url or commit.commit_url, "oid": commit.oid}
        return emit({**asdict(replace(result, commit=None)), "commit": where})
    for text in result.notes:
        note(f"note: {text}")
    for left in result.left_out:
        note(f"left out: {left.path} ({left.reason})")
    size = f"{len(result.files)} files, {byte_size(result.nbytes)}"
    if commit is None:
        for file in result.files:
            say(f"{byte_size(file.size):>10}  {file.path}")
        note(f"{size}, would go to {result.repo_id}. Nothing was sent.")
    elif result.is_new:
        say(f"{commit.pr_url or commit.commit_url}: {size}")
    else:
        say(f"{commit.commit_url}: nothing had changed, so there is no new commit")


VERBS = (bundle, card, push)

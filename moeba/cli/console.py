"""What every verb says and how: results on stdout, everything else on stderr, errors in one line."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

OK, USER_ERROR, USAGE_ERROR, NOT_CERTIFIED, INTERRUPTED = 0, 1, 2, 3, 130

_LONGEST = 2000  # characters of a message

# What a user can cause and mend. Anything else that is raised is a fault of Moeba or of a library.
USER_ERRORS = (ValueError, OSError, ImportError)

# `progress(done, total, what)`; no total where it is not known beforehand.
Progressed = Callable[[int, "int | None", str], None]


def named_path(text: str) -> Path:
    """A path out of the command line. An empty one, often a variable that is not set, is not the current folder."""
    if not text.strip():
        raise typer.BadParameter("the path is empty: give a folder, or . for this one")
    return Path(text)


def out() -> Console:
    """For results. Made when it is used, so that it writes to the stdout of that moment."""
    return Console(soft_wrap=True, highlight=False)


def err() -> Console:
    """For progress, notes and errors."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """One line of a result, as it is: nothing in it is markup."""
    out().print(text, markup=False)


def note(text: str) -> None:
    """One line beside the result."""
    err().print(text, markup=False)


def emit(value: Any) -> None:
    """A result for a program: JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def one_line(error: BaseException) -> str:
    """The message of an exception without its line breaks; its type where it has no message.

    Names and values in it are strangers': what steers a terminal is shown as Python writes it, and the middle of a very
    long message is left out.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(error).split()))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} […] {text[-_LONGEST // 2 :]}"
    return text or type(error).__name__


def quiet_libraries() -> None:
    """Keep the logs, warnings and bars of the libraries off the terminal. MOEBA_DEBUG=1 leaves them on."""
    if os.environ.get("MOEBA_DEBUG") == "1":
        return
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


@contextmanager
def notes_of_moeba() -> Iterator[None]:
    """Show what Moeba itself logs as notes on stderr."""
    logger, handler = logging.getLogger("moeba"), _Notes()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(f"note: {record.getMessage()}")


def quiet_datasets(user: str, extra: str) -> None:
    """The same for `datasets`, which few verbs use.

    Raises:
        ImportError: it is not installed; the message says who needs it, and of which extra it is.
    """
    try:
        from datasets.utils.logging import disable_progress_bar, set_verbosity_error
    except ImportError as error:
        raise ImportError(f'{user} needs datasets: pip install "moeba[{extra}]"') from error
    disable_progress_bar()
    set_verbosity_error()


def bytes_bar(title: str) -> AbstractContextManager[Progressed]:
    """A bar on stderr for work counted in bytes, if stderr is a terminal: `progress(done, total, what)`."""
    return _bar(title, DownloadColumn())


def count_bar(title: str) -> AbstractContextManager[Progressed]:
    """The same for work counted in pieces."""
    return _bar(title, MofNCompleteColumn())


@contextmanager
def _bar(title: str, amount: ProgressColumn) -> Iterator[Progressed]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        amount,
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", markup=False),
    )
    console = err()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, what="")
        yield lambda done, total, what: bar.update(task, completed=done, total=total, what=what)

"""The verbs together, and what becomes of their errors: one line on stderr and an exit code.

The exit codes are those of `EXIT_CODES`. Help is shown without loading torch and transformers.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from moeba_command import received as stopped
from moeba_command import said

from . import checkpoints, demo, doctor, evaluation, look, publish, serving, surgery
from .console import (
    INTERRUPTED,
    NOT_CERTIFIED,
    OK,
    USAGE_ERROR,
    USER_ERROR,
    USER_ERRORS,
    note,
    notes_of_moeba,
    one_line,
    quiet_libraries,
    say,
)

EXIT_CODES = {
    OK: "done",
    USER_ERROR: "the input or the machine does not allow it",
    USAGE_ERROR: "the command line is wrong",
    NOT_CERTIFIED: "a certificate failed, and nothing was published",
    INTERRUPTED: "Ctrl-C",
    128 + signal.SIGTERM: "stopped by SIGTERM (128 and the signal's number, as ever)",
}
EPILOG = f"Exit codes: {'; '.join(f'{code}: {text}' for code, text in EXIT_CODES.items())}."

# Some versions of typer carry their own copy of click: its exceptions are reached through typer's names.
_UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="moeba",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _with_libraries(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The verb behind what it needs: the package registered with transformers, and silent libraries."""

    @functools.wraps(verb)
    def run_verb(*args: Any, **kwargs: Any) -> Any:
        from ..registration import register

        register()
        quiet_libraries()
        try:
            return verb(*args, **kwargs)
        except EOFError as error:  # which click takes for Ctrl-D
            raise ValueError(f"a file ends before its time: {one_line(error)}") from error

    return run_verb


for module in (checkpoints, surgery, look, serving, evaluation, publish, demo, doctor):
    for verb in module.VERBS:
        passes_on = (
            {"allow_extra_args": True, "ignore_unknown_options": True} if verb is serving.serve else None
        )
        app.command(verb.__name__, epilog=EPILOG, context_settings=passes_on)(_with_libraries(verb))


def _show_version(wanted: bool) -> None:
    if wanted:
        from ..version import __version__

        say(__version__)
        raise typer.Exit


@app.callback(epilog=EPILOG)
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, and what the libraries log.")
    ] = False,
) -> None:
    """Convert a model to Moeba, grow experts in it, train it with your usual Trainer, and export it again.

    Every step that claims to keep the model's function proves it and writes a certificate.

    Example, from a dense model to a mixture of experts and out again:

    `moeba convert my-llama my-moeba`

    `moeba upcycle my-moeba my-moe --experts 8 --top-k 2 --to mixtral`

    `moeba export my-moe my-mixtral`
    """


def main() -> None:
    """The `moeba` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    words = list(arguments)
    if _takes_debug(words):
        os.environ["MOEBA_DEBUG"] = "1"
    stopped.clear()
    try:
        with notes_of_moeba():
            code = app(words, prog_name="moeba", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as done:  # a completion script has been shown
        code = done.code
    except BrokenPipeError:
        # The reader of our output, such as `head`, has gone: nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        return _explain(error)
    if code == INTERRUPTED:
        number = stopped[-1] if stopped else signal.SIGINT
        note(said(number))
        return 128 + number
    return code if isinstance(code, int) else OK


def _takes_debug(words: list[str]) -> bool:
    """Remove `--debug` wherever it stands before a `--`, so that it works after the verb as well."""
    end = words.index("--") if "--" in words else len(words)
    if "--debug" not in words[:end]:
        return False
    words.remove("--debug")
    return True


def _explain(error: Exception) -> int:
    """Say what went wrong in one line, and how that exits."""
    if os.environ.get("MOEBA_DEBUG") == "1" and not isinstance(error, _UsageError):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, _UsageError):
        note(f"Error: {' '.join(error.format_message().split())}")
        return USAGE_ERROR
    from huggingface_hub.errors import StrictDataclassError

    from ..conversion import CertificateError

    if isinstance(error, CertificateError):
        for line in error.certificate.lines():
            note(line)
        note(f"Error: {one_line(error)}")
        return NOT_CERTIFIED
    if isinstance(error, (*USER_ERRORS, StrictDataclassError)):
        note(f"Error: {one_line(error)}")
        return USER_ERROR
    note(
        f"Error: {type(error).__name__}: {one_line(error)} (a fault in Moeba or in a library it uses: "
        "--debug shows where)"
    )
    return USER_ERROR

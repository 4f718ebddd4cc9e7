"""The verb that looks at the machine: doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import USER_ERROR, emit, say
from .operations import Json


def doctor(
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Only look at versions, machine and kernels.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say whether Moeba works on this machine, and what to do if it does not.

    Shows the versions of all libraries and whether the tests have passed on them, the processor, the compiler,
    the accelerator, and which experts kernels run. Then tiny random models of three families are converted,
    certified, grown, run and exported, in under half a minute. Exits with 1 if something is to be done.

    Example: `moeba doctor --json`, whose output belongs into a bug report; it holds no paths and no secrets.
    """
    from ..doctor import examine

    report = examine(not no_check, (lambda line: None) if as_json else say)
    if as_json:
        emit(report.to_dict())
    if not report.well:
        raise typer.Exit(USER_ERROR)


VERBS = (doctor,)

"""The `moeba` command's way into the package, so that a refused or broken library is said in one line.

It stands beside the package because it is the package's import that fails then.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
received: list[int] = []  # the signals that a running command was stopped by


def main() -> None:
    """Import the package and run its command; exits with 1 if it cannot be imported, 128+n if signal n stops it."""
    # Nothing is at stake until the command runs, and an exception inside of an import may be lost or printed.
    heed(_leave)
    try:
        from moeba.cli import main as command
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        reason = " ".join(str(error).split())
        # The package's own refusal of a library says what to do.
        sys.exit(f"Error: {reason if reason.startswith('Moeba needs') else _broken(error, reason)}")
    heed(interrupt)
    sys.unraisablehook = _unless_stopped
    try:
        command()
    except KeyboardInterrupt:
        _leave(received[-1] if received else signal.SIGINT)


def heed(handler: signal.Handlers | object) -> None:
    """Have `handler` called for what asks a program to stop, but for what it was told to ignore (nohup)."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)  # type: ignore[arg-type]


def _leave(number: int, frame: FrameType | None = None) -> None:
    sys.stderr.write(f"{said(number)}\n")
    sys.stderr.flush()
    os._exit(128 + number)


def interrupt(number: int, frame: FrameType | None = None) -> None:
    """As Ctrl-C does: whatever is at work can clean up."""
    received.append(number)
    raise KeyboardInterrupt(number)


def _unless_stopped(unraisable: Any) -> None:
    """Report what no code could catch; not of a thread that just began when a signal came."""
    if not received:
        sys.__unraisablehook__(unraisable)


def said(number: int) -> str:
    """What a person is told."""
    return "Interrupted." if number == signal.SIGINT else f"Stopped by {signal.Signals(number).name}."


def _broken(error: Exception, reason: str) -> str:
    return (
        f"{type(error).__name__}: {reason} (a library that Moeba needs is missing or broken: "
        "`pip install --upgrade moeba` installs what is missing, --debug shows where)"
    )


if __name__ == "__main__":
    from moeba_command import main as main_of_this  # its `received` is the one that the package reads

    main_of_this()

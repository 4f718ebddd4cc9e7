"""Whether this process is the `moeba` command, asked for nothing but words: then nothing is loaded for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_QUESTIONS = {"-h", "--help", "--version", "--show-completion", "--install-completion"}
COMPLETION = "_MOEBA_COMPLETE"  # what a shell sets to ask for the words that may come next


def is_the_command(arguments: Sequence[str], original: Sequence[str]) -> bool:
    """Whether a process with this `sys.argv` and `sys.orig_argv` is `moeba` or `python -m moeba`."""
    if not arguments:
        return False
    if arguments[0] == "-m" or Path(arguments[0]).name == "__main__.py":
        return ("-m", "moeba") in zip(original, original[1:], strict=False)
    return Path(arguments[0]).stem in ("moeba", "moeba-script", "moeba_command")


def only_asks(words: Sequence[str]) -> bool:
    """Whether the words after `moeba` ask for help or the version, as no words at all do."""
    before = words[: words.index("--")] if "--" in words else words
    return not words or COMPLETION in os.environ or bool(_QUESTIONS.intersection(before))


def nothing_to_load() -> bool:
    """Whether importing the package may leave the libraries alone."""
    return is_the_command(sys.argv, sys.orig_argv) and only_asks(sys.argv[1:])

"""The `moeba` command's way into the package, so that a refused or broken library is said in one line.

It stands beside the package because it is the package's import that fails then.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Import the package and run its command; exits with 1 if it cannot be imported."""
    try:
        from moeba.cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        reason = " ".join(str(error).split())
        # The package's own refusal of a library says what to do.
        sys.exit(f"Error: {reason if reason.startswith('Moeba needs') else _broken(error, reason)}")
    command()


def _broken(error: Exception, reason: str) -> str:
    return (
        f"{type(error).__name__}: {reason} (a library that Moeba needs is missing or broken: "
        "`pip install --upgrade moeba` installs what is missing, --debug shows where)"
    )


if __name__ == "__main__":
    main()

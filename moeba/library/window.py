"""The window: between which releases of each library the tests have passed. The only place that compares versions.

It travels with a model's code, so that a folder of the Hub says the same sentence as the package.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed_version
from typing import Literal, NamedTuple

from packaging.version import InvalidVersion, Version


class Tested(NamedTuple):
    """The oldest and the newest release of a library that the tests have passed on."""

    oldest: str
    newest: str


# `constraints/` holds both ends as files for pip; setup.cfg names the oldest. A test holds the three together.
TESTED = {
    "python": Tested("3.11", "3.13"),
    "torch": Tested("2.12.1", "2.13.0"),
    "transformers": Tested("5.23.0", "5.24.0"),
    "accelerate": Tested("1.3.0", "1.15.0"),
    "safetensors": Tested("0.8.0", "0.8.0"),
    "tokenizers": Tested("0.23.1", "0.23.3"),
    "huggingface_hub": Tested("1.31.0", "2.4.0"),
    "peft": Tested("0.20.0", "0.21.2"),
    "datasets": Tested("3.0.0", "5.2.0"),
    "evaluate": Tested("0.4.3", "0.4.6"),
    "lm_eval": Tested("0.4.11", "0.4.13"),
    "jinja2": Tested("3.1.6", "3.1.6"),
    "packaging": Tested("24.0", "26.4"),
    "pyyaml": Tested("6.0", "6.0.4"),
    "rich": Tested("13.0.0", "15.0.0"),
    "typer": Tested("0.15.1", "0.29.2"),
    "typing_extensions": Tested("4.12.2", "4.16.0"),
}
# The next major release of transformers may change anything: it is refused, as an older one than the oldest is.
TRANSFORMERS_END = "6"

Place = Literal["missing", "older", "tested", "newer", "unlisted"]


def installed(library: str) -> str | None:
    """The installed version of a library, or of Python; None where it is not installed."""
    if library == "python":
        return platform.python_version()
    try:
        return _installed_version(library)
    except PackageNotFoundError:
        return None


def place(library: str) -> Place:
    """Where the installed version lies: a patch release of the newest tested one still counts as tested.

    A library without a row in the table is `unlisted`.
    """
    version = installed(library)
    if version is None:
        return "missing"
    if library not in TESTED:
        return "unlisted"
    oldest, newest = (Version(end) for end in TESTED[library])
    if Version(version) < oldest:
        return "older"
    return "tested" if Version(version).release[:2] <= newest.release[:2] else "newer"


def requirement(library: str) -> str:
    """What pip is asked for to get a release inside the window."""
    if library not in TESTED:
        return library
    end = f",<{TRANSFORMERS_END}" if library == "transformers" else ""
    return f"{library}>={TESTED[library].oldest}{end}"


def require_transformers() -> None:
    """Refuse a transformers outside the window.

    Raises:
        ImportError: it is older than the oldest release that has what Moeba needs, or a later major release.
    """
    version, oldest = installed("transformers"), TESTED["transformers"].oldest
    if version is None or not Version(oldest) <= Version(version) < Version(TRANSFORMERS_END):
        found = "none is installed" if version is None else f"{version} is installed"
        wanted = requirement("transformers")
        raise ImportError(f'Moeba needs {wanted}, {found}: pip install "{wanted}"')


def is_newer_than_installed(version: object) -> bool:
    """Whether this text, perhaps of a file by a stranger, names a later release of transformers than the installed."""
    try:
        return Version(str(version)) > Version(installed("transformers") or "0")
    except InvalidVersion:
        return False


def untested_transformers() -> str | None:
    """One line for whoever writes a folder with a transformers that is newer than the newest tested one."""
    if place("transformers") != "newer":
        return None
    return (
        f"transformers {installed('transformers')} is newer than the newest that Moeba was tested on "
        f"({TESTED['transformers'].newest}): `moeba doctor` checks whether all is well"
    )

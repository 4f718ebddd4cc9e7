# Copyright 2026 The Moeba Authors. Licensed under the Apache License, Version 2.0.
"""Import transformers' own test mixins from the source distribution of the installed transformers.

The wheel carries no tests, the sdist carries the top-level `tests/test_*.py` files. Nothing of it is copied
into this repository: the sdist of exactly the installed version is fetched from the package index on first
use, kept under `~/.cache/moeba-tests` (`$MOEBA_TESTS_CACHE` overrides), and imported as the package
`transformers_upstream_tests`, so that it cannot clash with any other package called `tests`. The few modules
which those files import and the sdist leaves out are supplied by `upstream_stubs.py`.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import types
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from unittest import mock

from filelock import FileLock

PACKAGE = "transformers_upstream_tests"
REQUIRED_FILE = "test_modeling_common.py"


class UpstreamUnavailable(RuntimeError):
    """The sdist of the installed transformers could not be had (no network, no such release, no pip)."""


def running_in_ci() -> bool:
    return os.environ.get("CI", "").strip().lower() in {"1", "true", "yes", "on"}


def cache_dir() -> Path:
    if override := os.environ.get("MOEBA_TESTS_CACHE"):
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moeba-tests"


def _download_sdist(release: str, folder: Path) -> Path:
    """`pip download` rather than a URL of our own: it honours the user's index, mirror, proxy and certificate
    settings and checks the index's hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "30", "--dest", str(folder)]
    try:
        # pip runs the sdist's build backend for its metadata; an installed setuptools saves a second download
        version("setuptools"), version("wheel")
        command.append("--no-build-isolation")
    except PackageNotFoundError:
        pass
    try:
        done = subprocess.run(
            [*command, f"transformers=={release}"], capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired as error:
        raise UpstreamUnavailable(
            f"pip download transformers=={release} took more than {error.timeout:.0f} s"
        ) from error
    archives = sorted(folder.glob("transformers-*.tar.gz"))
    if done.returncode != 0 or len(archives) != 1:
        last_lines = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise UpstreamUnavailable(f"pip download transformers=={release} (sdist) failed: {last_lines}")
    return archives[0]


def _extract_tests(archive: Path, target: Path) -> None:
    if not tarfile.is_tarfile(archive):
        raise UpstreamUnavailable(f"{archive.name} is not a tar archive")
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, inner = member.name.partition("/")
            if member.isfile() and inner.startswith("tests/"):
                member.name = inner.removeprefix("tests/")
                tar.extract(member, target, filter="data")
    if not (target / REQUIRED_FILE).is_file():
        raise UpstreamUnavailable(f"{archive.name} holds no tests/{REQUIRED_FILE}")


def fetch() -> Path:
    """The folder with the installed version's test files; safe to call from several processes at once."""
    release = version("transformers")
    tests = cache_dir() / f"transformers-{release}-tests"
    if (tests / REQUIRED_FILE).is_file():  # only ever renamed into place as a whole
        return tests
    tests.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{tests}.lock"):
        if not (tests / REQUIRED_FILE).is_file():
            shutil.rmtree(tests, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=tests.parent) as scratch:
                extracted = Path(scratch) / "tests"
                _extract_tests(_download_sdist(release, Path(scratch)), extracted)
                extracted.rename(tests)
    return tests


def install(tests: Path) -> None:
    """Make `tests` importable as `transformers_upstream_tests`, stand-ins included. Idempotent."""
    if PACKAGE in sys.modules:
        return
    import upstream_stubs

    def add(name: str, path: list[str] | None, **attributes) -> None:
        module = types.ModuleType(f"{PACKAGE}.{name}" if name else PACKAGE, "Stand-in, see upstream_stubs.py")
        if path is not None:
            module.__path__ = path
        vars(module).update(attributes)
        sys.modules[module.__name__] = module

    add("", [str(tests)])
    for name, attributes in upstream_stubs.MODULES.items():
        parent, _, _ = name.rpartition(".")
        if (tests / f"{name.replace('.', '/')}.py").is_file():
            continue  # a later release ships it: prefer the real one
        if parent and f"{PACKAGE}.{parent}" not in sys.modules:
            add(parent, [str(tests / parent)])
        add(name, None, **attributes)


def load(name: str) -> types.ModuleType:
    """Import one upstream test file, e.g. `load("test_modeling_common")`."""
    import transformers

    # test_configuration_common re-imports transformers from the source checkout it expects to lie in
    with mock.patch("transformers.utils.direct_transformers_import", lambda *args, **kwargs: transformers):
        return importlib.import_module(f"{PACKAGE}.{name}")

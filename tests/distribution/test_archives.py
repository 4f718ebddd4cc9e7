"""What an archive holds is what the tree holds: a wheel of the tree, and one of the source archive."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".github", "moeba", "tests", "benchmarks", "constraints", "tools")
FILES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "moeba_command.py",
    "pyproject.toml",
    "setup.cfg",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A clean copy: what an earlier build left in the real tree would get into the wheel."""
    copy = tmp_path_factory.mktemp("tree") / "moeba"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copyfile(ROOT / name, copy / name)
    return copy


def build(source: Path, *kinds: str) -> Path:
    """Build without the network, with the setuptools that is installed."""
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (source / "dist").iterdir()
    return made


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def check_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {Path(name).name for name in archive.namelist() if ".dist-info/" in name}
    assert names == files_below(ROOT / "moeba") | {"moeba_command.py"}
    assert {"LICENSE", "METADATA", "entry_points.txt"} <= metadata


def test_the_wheel_holds_the_package(tree):
    check_wheel(build(tree, "--wheel"))


def test_the_source_archive_holds_what_builds_and_tests_it(tree, tmp_path):
    shutil.rmtree(tree / "dist", ignore_errors=True)
    with tarfile.open(build(tree, "--sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    for folder in FOLDERS:
        assert files_below(unpacked / folder) == files_below(ROOT / folder), folder
    for name in FILES:
        assert (unpacked / name).is_file(), name
    check_wheel(build(unpacked, "--wheel"))

"""A destination that is the source is refused however its path is spelled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moeba.conversion.destination import check_apart


def test_another_path_to_the_same_folder(tmp_path, monkeypatch):
    """As on a file system that ignores case, or under a second mount: no resolving of links makes them one."""
    source, mount = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    mount.mkdir()
    check_apart(source, mount)
    monkeypatch.setattr(
        os.path, "samefile", lambda *paths: {Path(path).name for path in paths} <= {"source", "mount"}
    )
    with pytest.raises(ValueError, match="mount is the source itself: choose another destination"):
        check_apart(source, mount)
    check_apart(source, tmp_path / "new")  # what is not there is nothing's other name


@pytest.mark.parametrize(
    "spelling", ["source", "./source", "source/../source", "source/.", "link", "~/source"]
)
def test_spellings_of_one_folder(tmp_path, monkeypatch, spelling):
    (tmp_path / "source").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="is the source itself"):
        check_apart(tmp_path / "source", spelling)
    with pytest.raises(ValueError, match="is the source itself"):
        check_apart(spelling, tmp_path / "source")
    with pytest.raises(ValueError, match="is inside the source"):
        check_apart(spelling, tmp_path / "source" / "new")
    with pytest.raises(ValueError, match="is around the source"):
        check_apart(spelling, tmp_path)

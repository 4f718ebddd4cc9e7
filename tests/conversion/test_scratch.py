"""A temporary folder of a killed process goes when the next one asks for one; those in use stay."""

from __future__ import annotations

import tempfile

import pytest

from moeba.conversion import destination
from moeba.conversion.destination import LOCK
from moeba.conversion.scratch import scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_nothing_is_left(temporary):
    with scratch("push") as folder:
        (folder / "file").touch()
        assert temporary in folder.parents
    assert not list(temporary.iterdir())


@pytest.mark.skipif(destination.fcntl is None, reason="this system has no file locks")
def test_what_a_killed_process_left_goes(temporary, tmp_path):
    """Its lock is there, and nobody holds it. Links in it are not followed."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").touch()
    for name in ("moeba-push-left", "moeba-doctor-left", "moeba-push-of-somebody-else"):
        (temporary / name).mkdir()
        (temporary / name / "weights").symlink_to(tmp_path / "weights")
    for name in ("moeba-push-left", "moeba-doctor-left"):
        (temporary / name / LOCK).touch()
    (temporary / "moeba-push-link").symlink_to(tmp_path / "weights")
    with scratch("push") as first, scratch("push") as second:
        assert first.is_dir() and second.is_dir()
        names = {path.name for path in temporary.iterdir()} - {first.parent.name, second.parent.name}
    assert names == {"moeba-doctor-left", "moeba-push-of-somebody-else", "moeba-push-link"}
    assert (tmp_path / "weights" / "model.safetensors").exists()

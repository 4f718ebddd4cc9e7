"""Each library's release is placed, and what is missing or too old is answered with one command."""

from __future__ import annotations

import pytest

from moeba.doctor import versions
from moeba.library import window


@pytest.fixture
def installed(monkeypatch):
    """`installed(peft="0.1")` changes what is installed; the table has one tested release of all that matters."""
    table = dict.fromkeys([*versions.NEEDED, *versions.OPTIONAL], window.Tested("2.0.0", "2.1.0"))
    monkeypatch.setattr(window, "TESTED", table)

    def install(**found):
        monkeypatch.setattr(window, "installed", lambda library: found.get(library, "2.0.3"))
        return versions.releases()

    return install


def line(found, name):
    return next(release.line() for release in found if release.name == name)


def test_all_inside_the_window(installed):
    found = installed()
    assert versions.remedy(found) is None and versions.back_to_tested(found) is None
    assert line(found, "torch").split() == ["torch", "2.0.3", "tested", "(2.0.0", "to", "2.1.0)"]


def test_the_real_table_names_no_remedy_here():
    assert versions.remedy(versions.releases()) is None


def test_missing_and_old_libraries_are_installed_by_one_command(installed):
    found = installed(accelerate=None, peft="1.0", transformers="1.9")
    assert versions.remedy(found) == 'pip install "transformers>=2.0.0,<6" "accelerate>=2.0.0" "peft>=2.0.0"'
    assert "NOT INSTALLED" in line(found, "accelerate") and "OLDER" in line(found, "peft")


def test_an_optional_library_may_be_missing(installed):
    found = installed(peft=None, datasets=None, evaluate=None, triton=None)
    assert versions.remedy(found) is None
    assert "not installed (only for adapters)" in line(found, "peft")


def test_an_old_python(installed):
    assert (
        versions.remedy(installed(python="1.0", torch=None))
        == 'make an environment with Python 2.0.0 or newer, then pip install "torch>=2.0.0"'
    )


def test_newer_releases_are_no_fault_and_have_a_way_back(installed):
    found = installed(torch="3.0", python="3.0")
    assert versions.remedy(found) is None
    assert versions.back_to_tested(found) == 'pip install "torch==2.1.0"'
    assert "newer than tested" in line(found, "torch")


def test_a_library_without_a_row(installed):
    del window.TESTED["numpy"]
    assert line(installed(), "numpy").split() == ["numpy", "2.0.3", "installed"]

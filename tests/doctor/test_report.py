"""The last line says that all is well or what to do, and a report holds no place of its user's machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moeba.doctor.experts import ExpertsReport
from moeba.doctor.report import Report, without_places
from moeba.doctor.self_check import Finding
from moeba.doctor.versions import Release
from moeba.library import window

TORCH = Release("torch", "2.13.0", "tested", window.Tested("2.13.0", "2.13.0"))
NEWER = Release("transformers", "5.30.0", "newer", window.Tested("5.23.0", "5.24.0"))
OLD = Release("accelerate", "0.1", "older", window.Tested("1.1.0", "1.2.0"))
FAULT = Finding("llama", "convert", "failed", "ValueError: no", 1.0)
FINE = Finding("llama", "make", "ok", "", 1.0)


@pytest.mark.parametrize(
    ("releases", "experts", "findings", "says"),
    [
        ([TORCH], {}, [FINE], "All well."),
        ([TORCH], {}, None, "All well, as far as versions and kernels tell (no self-check was made)."),
        ([NEWER], {}, [FINE], "All well, with transformers 5.30.0, newer than tested."),
        ([OLD], {}, [FAULT], 'To do: pip install "accelerate>=1.1.0"; run `moeba doctor` again.'),
        ([TORCH], {"to_do": "install a compiler"}, [FINE], "To do: install a compiler."),
        (
            [NEWER],
            {},
            [FINE, FAULT],
            "To do: 1 of 2 steps failed (first llama convert: ValueError: no): pip install "
            '"transformers==5.24.0", which is tested, and report it with the output of `moeba doctor --json`.',
        ),
        (
            [TORCH],
            {"failed": "they differ"},
            [FINE],
            "To do: experts fail (they differ): report it with the output of `moeba doctor --json`.",
        ),
    ],
)
def test_verdict(monkeypatch, releases, experts, findings, says):
    monkeypatch.setattr(window, "TESTED", {found.name: found.tested for found in releases})
    report = Report(releases, {}, ExpertsReport(**experts), findings)
    assert report.verdict() == says
    assert report.well == says.startswith("All well")


def test_places_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/users/alice")
    monkeypatch.setenv("MOEBA_CACHE", "/users/alice/cache")
    package = Path(__file__).parents[2] / "moeba"
    given = {
        "a": ["/users/alice/bin/g++", ("/users/alice/cache/x.so",)],
        "b": f"{package}/kernels: no",
        "c": 3,
    }
    assert without_places(given) == {"a": ["~/bin/g++", ["<cache>/x.so"]], "b": "<moeba>/kernels: no", "c": 3}


def test_a_home_that_is_the_root(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert without_places("/usr/bin/g++") == "/usr/bin/g++"


def test_a_report_is_json():
    report = Report([TORCH, NEWER], {"features": ["avx2"]}, ExpertsReport(), [FINE])
    told = json.loads(json.dumps(report.to_dict()))
    assert told["well"] is True
    assert told["versions"]["transformers"] == {
        "installed": "5.30.0",
        "place": "newer",
        "tested": ["5.23.0", "5.24.0"],
    }
    assert told["self_check"][0]["step"] == "make"

"""`moeba doctor` on this machine, and where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moeba.doctor import report
from moeba.doctor.experts import ExpertsReport


@pytest.fixture(scope="module")
def as_here():
    """What the experts of this machine are like; a machine without a compiler has something to do."""
    from moeba.doctor.experts import examine_experts

    return examine_experts()


def test_everything_is_well_here(moeba, as_here):
    said = moeba("doctor", "--json")
    told = json.loads(said.out)
    steps = told["self_check"]
    assert [step for step in steps if step["outcome"] != "ok"] == []
    assert len({step["family"] for step in steps}) == 3 and len(steps) == 18
    assert {"convert", "certify", "upcycle", "generate", "export"} <= {step["step"] for step in steps}
    assert sum(step["seconds"] for step in steps) < 90  # 10 on an idle machine
    assert (said.code, told["well"]) == ((1, False) if as_here.to_do else (0, True))
    assert str(Path.home()) not in said.out or Path.home() == Path("/")


def test_without_the_self_check(moeba, monkeypatch):
    monkeypatch.setattr(report, "examine_experts", lambda: ExpertsReport(default="moeba", library="x.so"))
    said = moeba("doctor", "--no-check")
    assert said.code == 0
    lines = said.out.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")][:3] == [
        "Versions",
        "Machine",
        "Experts",
    ]
    assert lines[-1] == "All well, as far as versions and kernels tell (no self-check was made)."


def test_what_is_to_do_exits_with_1(moeba, monkeypatch):
    monkeypatch.setattr(report, "examine_experts", lambda: ExpertsReport(to_do="install a compiler"))
    said = moeba("doctor", "--no-check")
    assert (said.code, said.out.splitlines()[-1]) == (1, "To do: install a compiler.")

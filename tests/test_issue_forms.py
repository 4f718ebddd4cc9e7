"""The forms of the issue tracker are what GitHub reads, and a bug report comes with the doctor's findings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

FORMS = Path(__file__).parents[1] / ".github" / "ISSUE_TEMPLATE"


def read(name):
    return yaml.safe_load((FORMS / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name", sorted(path.name for path in FORMS.glob("*.yml") if path.name != "config.yml")
)
def test_a_form_has_all_that_github_asks_for(name):
    form = read(name)
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(
        field["type"] in ("input", "textarea") and field["attributes"]["label"] for field in form["body"]
    )


def test_a_bug_report_holds_what_the_doctor_says():
    field = next(field for field in read("bug.yml")["body"] if field["id"] == "doctor")
    assert "`moeba doctor --json`" in field["attributes"]["label"]
    assert field["attributes"]["render"] == "json" and field["validations"]["required"]


def test_no_issue_without_a_form():
    assert read("config.yml") == {"blank_issues_enabled": False}

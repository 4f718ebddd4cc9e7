"""The window is written in several places, which say the same: its table, setup.cfg, the constraints, the workflow."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from moeba.library.window import TESTED, TRANSFORMERS_END

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
# The extras whose libraries are needed to run something of Moeba, and not to develop it.
EXTRAS = ("train", "evaluate", "lm_eval", "peft")


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(canonicalize_name(library) == library for library in found)
    return found


def setup_cfg() -> configparser.ConfigParser:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    return settings


def lower_bound(specifiers: SpecifierSet) -> str:
    (bound,) = (specifier.version for specifier in specifiers if specifier.operator == ">=")
    return bound


def demanded() -> dict[str, SpecifierSet]:
    settings = setup_cfg()
    lines = settings["options"]["install_requires"].split("\n")
    for extra in EXTRAS:
        lines += settings["options.extras_require"][extra].split("\n")
    found = {}
    for requirement in (Requirement(line) for line in lines if line.strip() and not line.startswith("#")):
        assert found.setdefault(requirement.name, requirement.specifier) == requirement.specifier
    return found


def test_every_library_that_is_demanded_is_tested():
    assert demanded().keys() | {"python"} == TESTED.keys()


def test_lower_bounds_are_the_oldest_that_was_tested():
    oldest = pins("oldest.txt")
    for library, specifiers in demanded().items():
        assert lower_bound(specifiers) == TESTED[library].oldest == oldest[canonicalize_name(library)], (
            library
        )
    assert lower_bound(SpecifierSet(setup_cfg()["options"]["python_requires"])) == TESTED["python"].oldest
    assert f"<{TRANSFORMERS_END}" in str(demanded()["transformers"])


def test_the_newest_set_is_the_newest_that_was_tested():
    newest = pins("newest.txt")
    for library in demanded():
        assert TESTED[library].newest == newest[canonicalize_name(library)], library


def test_classifiers_and_workflow_name_the_pythons_of_the_window():
    named = re.findall(r"Python :: (3\.\d+)", setup_cfg()["metadata"]["classifiers"])
    assert (named[0], named[-1]) == TESTED["python"]
    assert yaml.safe_load(WORKFLOW)["jobs"]["test"]["strategy"]["matrix"]["python"] == named


def test_makefile_and_workflow_install_the_torch_of_the_newest_set():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"\nTORCH ?= torch=={TESTED['torch'].newest}\n" in text
    assert set(re.findall(r"torch==([\d.]+)", WORKFLOW)) == {TESTED["torch"].newest}

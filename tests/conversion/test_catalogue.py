"""The table of families: true, complete, and the one in the README."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import moeba
from moeba.conversion import FAMILIES, family_of
from moeba.conversion.catalogue import BEGIN, END, conditions, families, markdown, unsupported
from moeba.conversion.families import ALIASES, KNOWN_FAMILIES
from moeba.conversion.unsupported import SINCE, UNSUPPORTED
from moeba.library.window import TESTED, place

ROOT = Path(moeba.__file__).parents[1]


def test_readme_is_up_to_date():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) : text.index(END) + len(END)]
    assert shown == markdown(), (
        "put the output of `moeba families --markdown` between the markers in README.md"
    )


def test_one_entry_a_family():
    assert [entry["model_type"] for entry in families()] == list(KNOWN_FAMILIES)
    by_name = {entry["model_type"]: entry for entry in families()}
    assert (by_name["llama"]["exactness"], by_name["llama"]["reason"]) == ("bit-identical", "")
    assert by_name["gpt2"]["exactness"] == "equal to rounding" and by_name["gpt2"]["reason"]
    assert "add_cross_attention=False" in conditions(by_name["gpt2"])


# Which release brought each family and each refused type: "" for the oldest of the window or an earlier one.
ARRIVED = (
    {name: family.since for name, family in KNOWN_FAMILIES.items()}
    | dict.fromkeys((*UNSUPPORTED, *ALIASES), "")
    | SINCE
)


def test_every_causal_language_model_is_taken_or_refused_for_a_reason():
    assert not set(KNOWN_FAMILIES) & set(UNSUPPORTED)
    assert all(entry["reason"] for entry in unsupported())
    if place("transformers") == "newer":
        pytest.skip(f"the lists are those of transformers up to {TESTED['transformers'].newest}")
    here = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {moeba.MoebaConfig.model_type}
    assert sorted(here - set(ARRIVED)) == []
    # What is listed but not here came with one later release, all of it.
    missing = set(ARRIVED) - here - set(FAMILIES)
    later = {ARRIVED[name] for name in missing}
    assert "" not in later, sorted(name for name in missing if not ARRIVED[name])
    assert missing == {name for name, since in ARRIVED.items() if since in later}
    if later:
        assert Version(transformers.__version__) < Version(min(later, key=Version))


def test_releases_are_of_the_window():
    oldest, newest = (end.rpartition(".")[0] for end in TESTED["transformers"])
    assert {*ARRIVED.values()} <= {"", newest} and oldest not in ARRIVED.values()


@pytest.mark.parametrize("model_type", [name for name, family in KNOWN_FAMILIES.items() if family.since])
def test_family_of_a_later_release(model_type, monkeypatch):
    """As on the release before: listed, not offered, and one sentence that says what it needs."""
    markdown_here = markdown()
    monkeypatch.delitem(FAMILIES, model_type, raising=False)
    with pytest.raises(
        ValueError, match=f"model_type='{model_type}' needs transformers 5.24 or later: .* is ins"
    ):
        family_of(model_type)
    (entry,) = [entry for entry in families() if entry["model_type"] == model_type]
    assert entry["since"] == "5.24" and entry["needs"] == "transformers 5.24"
    assert markdown() == markdown_here


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_refusal_gives_the_reason(model_type):
    with pytest.raises(ValueError, match="is not supported: ") as caught:
        family_of(model_type)
    assert UNSUPPORTED[model_type] in str(caught.value)


def test_oldest_release_is_the_oldest_that_is_allowed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split()
    (required,) = [Requirement(line) for line in lines if line.startswith("transformers")]
    oldest = [Version(item.version) for item in required.specifier if item.operator == ">="]
    assert oldest == [Version(TESTED["transformers"].oldest)]
    assert Version(transformers.__version__) in required.specifier

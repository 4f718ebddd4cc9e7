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
from moeba.conversion.catalogue import BEGIN, END, VERIFIED_WITH, conditions, families, markdown, unsupported
from moeba.conversion.unsupported import UNSUPPORTED

ROOT = Path(moeba.__file__).parents[1]


def test_readme_is_up_to_date():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) : text.index(END) + len(END)]
    assert shown == markdown(), (
        "put the output of `moeba families --markdown` between the markers in README.md"
    )


def test_one_entry_a_family():
    assert [entry["model_type"] for entry in families()] == list(FAMILIES)
    by_name = {entry["model_type"]: entry for entry in families()}
    assert (by_name["llama"]["exactness"], by_name["llama"]["reason"]) == ("bit-identical", "")
    assert by_name["gpt2"]["exactness"] == "equal to rounding" and by_name["gpt2"]["reason"]
    assert "add_cross_attention=False" in conditions(by_name["gpt2"])


def test_every_causal_language_model_is_taken_or_refused_for_a_reason():
    assert not set(FAMILIES) & set(UNSUPPORTED)
    assert all(entry["reason"] for entry in unsupported())
    if not transformers.__version__.startswith(f"{VERIFIED_WITH}."):
        pytest.skip(f"the lists are those of transformers {VERIFIED_WITH}")
    known = set(FAMILIES) | set(UNSUPPORTED)
    assert sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - known) == []
    assert sorted(set(UNSUPPORTED) - set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)) == []


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_refusal_gives_the_reason(model_type):
    with pytest.raises(ValueError, match="is not supported: ") as caught:
        family_of(model_type)
    assert UNSUPPORTED[model_type] in str(caught.value)


def test_verified_version_is_the_oldest_that_is_allowed():
    """The families were compared with it, and the tests run with it or a later one that the package accepts."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split()
    (required,) = [Requirement(line) for line in lines if line.startswith("transformers")]
    oldest = [item.version for item in required.specifier if item.operator == ">="]
    assert oldest == [VERIFIED_WITH]
    assert Version(transformers.__version__) in required.specifier

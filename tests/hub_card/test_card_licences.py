"""The strictest licence of the sources is inherited, and what is not clear is said."""

import pytest
from card_folders import provenance, source, write_json
from huggingface_hub import ModelCard

from moeba.hub_card import gather_facts, write_card
from moeba.hub_card.text.licences import inherited


def found(folder, *licences):
    """What is inherited from sources with these licences: ids, or fields of a source."""
    sources = [source(**(one if isinstance(one, dict) else {"license": one})) for one in licences]
    write_json(folder, "moeba_provenance.json", provenance("merge", source=None, sources=sources))
    return inherited(gather_facts(folder).steps)


@pytest.mark.parametrize(
    ("licences", "strictest"),
    [
        (["mit", "apache-2.0"], "apache-2.0"),
        (["apache-2.0", "mit", "mit"], "apache-2.0"),
        (["gpl-3.0", "mit"], "gpl-3.0"),
        (["lgpl-3.0", "agpl-3.0", "gpl-3.0"], "agpl-3.0"),
        (["llama3.2", "apache-2.0"], "llama3.2"),
        (["gpl-3.0", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["cc-by-4.0", "cc-by-nc-nd-4.0", "openrail"], "cc-by-nc-nd-4.0"),
        (["mit", {"license": "other", "license_name": "house", "license_link": "LICENSE"}], "other"),
    ],
)
def test_the_strictest_wins_and_the_difference_is_said(tmp_path, licences, strictest):
    inheritance = found(tmp_path, *licences)
    assert inheritance.licence.id == strictest
    assert "different licences" in inheritance.conflict and "strictest" in inheritance.conflict
    text = write_card(tmp_path).read_text(encoding="utf-8")
    assert ModelCard(text).data.license == strictest and inheritance.conflict in text


def test_conditions_that_may_clash_are_named(tmp_path):
    assert "may conflict with gpl-3.0" in found(tmp_path, "gpl-3.0", "cc-by-nc-4.0", "mit").conflict
    assert "may conflict" not in found(tmp_path, "mit", "gpl-3.0").conflict


def test_equal_licences_are_no_conflict(tmp_path):
    inheritance = found(tmp_path, "mit", "mit")
    assert (inheritance.licence.id, inheritance.conflict) == ("mit", "")


@pytest.mark.parametrize(
    ("licences", "said"),
    [
        (["mit", None], "records no licence"),
        (
            [{"license": "other", "license_name": "a"}, {"license": "other", "license_name": "b"}],
            "all of them bind",
        ),
        (["something-new", {"license": "other"}, "mit"], "all of them bind"),
    ],
)
def test_what_cannot_be_decided_is_left_open(tmp_path, licences, said):
    inheritance = found(tmp_path, *licences)
    assert inheritance.licence is None and said in inheritance.conflict
    text = write_card(tmp_path).read_text(encoding="utf-8")
    assert ModelCard(text).data.license is None
    assert "| **Licence** | not decided: its sources differ, see the limits |" in text and said in text

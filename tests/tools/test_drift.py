"""The list of what moved in the libraries is a list that a person trusts: it must see each kind of move."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "tools" / "drift.py"
spec = importlib.util.spec_from_file_location("drift", PATH)
drift = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drift)


def test_comments_docstrings_and_layout_are_no_move():
    plain = "def f(x):\n    return x + 1\n"
    told = '    def f(x):\n        """Says why."""\n        # and how\n        return x + (1)\n'
    assert drift.code_hash(plain) == drift.code_hash(told)
    assert drift.code_hash(plain) != drift.code_hash(plain.replace("1", "2"))


def test_each_kind_of_move_is_told():
    before = {
        "lib.same": {"signature": "(x)", "code": "1"},
        "lib.renamed": {"signature": "(past_key_values)", "code": "1"},
        "lib.old": {"signature": "(x)", "code": "1"},
        "lib.left": {"signature": "(x)", "code": "1"},
        "lib.code": {"signature": "(x)", "code": "1"},
        "family llama": {"in float32": "None", "code": "1"},
    }
    now = {
        "lib.same": {"signature": "(x)", "code": "1"},
        "lib.renamed": {"signature": "(cache)", "code": "2"},
        "lib.old": {"signature": "(x)", "code": "1", "deprecated": "@deprecate_kwarg"},
        "lib.left": {"gone": "not importable"},
        "lib.code": {"signature": "(x)", "code": "2"},
        "lib.new": {"signature": "(x)", "code": "1"},
        "family llama": {"in float32": "['gate.weight']", "code": "2"},
    }
    text = "\n".join(drift.changes(before, now))
    assert "lib.same" not in text
    assert "lib.renamed: signature\n    was (past_key_values)\n    is  (cache)" in text
    assert "lib.old: deprecated\n    was None\n    is  @deprecate_kwarg" in text
    assert "lib.left: gone" in text
    assert "lib.new: not recorded yet" in text
    assert "family llama: in float32\n    was None\n    is  ['gate.weight']" in text
    assert text.endswith("in code only: lib.code")


def test_a_name_that_is_gone_does_not_resolve():
    assert drift.resolve("transformers.masking_utils.create_causal_mask").__name__ == "create_causal_mask"
    for gone in (
        "transformers.masking_utils.create_no_mask",
        "transformers.no_module.name",
        "no_library.name",
    ):
        with pytest.raises((AttributeError, ImportError)):
            drift.resolve(gone)


def test_the_room_and_the_overrides_are_looked_at():
    names = drift.imported_names()
    assert "transformers.masking_utils.create_causal_mask" in names
    assert "accelerate.hooks.attach_align_device_hook" in names
    methods = drift.overridden_methods()
    assert "transformers.generation.utils.GenerationMixin.prepare_inputs_for_generation" in methods
    assert "transformers.modeling_utils.PreTrainedModel._init_weights" in methods
    assert "transformers.configuration_utils.PreTrainedConfig.from_dict" in methods


def test_the_record_covers_what_is_reached():
    record = json.loads(drift.RECORD.read_text())
    assert not (drift.imported_names() | drift.overridden_methods()) - record["names"].keys(), (
        "run `make drift ARGS=--record` on the newest tested releases"
    )

"""The calling convention: a library that calls by other names is refused when Moeba is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from moeba import MoebaForCausalLM, MoebaModel
from moeba.library.contract import broken_calls, require_contract
from moeba.library.upstream import CACHE

FORWARDS = (MoebaModel.forward, MoebaForCausalLM.forward)
PREPARE = MoebaForCausalLM.prepare_inputs_for_generation


def test_the_installed_library_keeps_it():
    assert broken_calls(FORWARDS, PREPARE) == []


def test_a_function_of_ours_without_a_name_of_theirs():
    def forward(input_ids=None, attention_mask=None, position_ids=None, use_cache=None, **kwargs): ...

    [text] = broken_calls([forward], PREPARE)
    assert text.endswith(f"takes no {', '.join(sorted([CACHE, 'inputs_embeds']))}")


def test_a_function_of_theirs_without_a_name_of_ours():
    def mask(config, inputs_embeds, **kwargs): ...

    [text] = broken_calls(FORWARDS, PREPARE, [("create_causal_mask", mask, {"config", "attention_mask"})])
    assert text == "transformers' create_causal_mask takes no attention_mask"


def test_our_override_of_a_library_function_uses_its_names():
    def prepare(self, input_ids, sequence_to_come=None, **kwargs): ...

    [text] = broken_calls(FORWARDS, prepare)
    assert text == "transformers' prepare_inputs_for_generation takes no sequence_to_come"


def test_the_error_names_both_releases():
    with pytest.raises(ImportError, match=r"transformers \d.* takes no .*tested on is transformers \d"):
        require_contract([lambda input_ids: None], PREPARE)


# What a release that renames an argument once more looks like to Moeba.
NEXT_RELEASE = """
import inspect
from transformers import modeling_layers, generation, masking_utils

def renamed(function, old, new):
    signature = inspect.signature(function)
    shown = [p.replace(name=new) if p.name == old else p for p in signature.parameters.values()]
    def wrapper(*args, **kwargs):
        if new in kwargs:
            kwargs[old] = kwargs.pop(new)
        return function(*args, **kwargs)
    wrapper.__signature__ = signature.replace(parameters=shown)
    return wrapper

{changes}
import moeba
"""
CHANGES = {
    "the cache": """
head = modeling_layers.GenericForSequenceClassification
head.forward = renamed(head.forward, "{cache}", "kv")
masking_utils.create_causal_mask = renamed(masking_utils.create_causal_mask, "{cache}", "kv")
""",
    "an argument of forward": """
head = modeling_layers.GenericForSequenceClassification
head.forward = renamed(head.forward, "position_ids", "positions")
""",
    "an argument of generation": """
mixin = generation.GenerationMixin
mixin.prepare_inputs_for_generation = renamed(mixin.prepare_inputs_for_generation, "next_sequence_length", "tail")
""",
    "an argument of a mask": """
masking_utils.create_causal_mask = renamed(masking_utils.create_causal_mask, "attention_mask", "padding_mask")
""",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_release_that_renames_something_is_refused_at_import(change):
    code = NEXT_RELEASE.format(changes=CHANGES[change].format(cache=CACHE))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: transformers" in done.stderr and "takes no" in done.stderr

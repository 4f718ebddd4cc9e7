"""Each family's converted model against the stock one: every tensor random, in float32 and in bfloat16."""

from __future__ import annotations

import pytest
import torch
from family_case import FIRST, Case, wide
from hypothesis import given, note
from hypothesis import strategies as st
from native import config_from, load
from parity import (
    agreement,
    assert_same_gradients,
    assert_same_logits,
    assert_same_products,
    assert_same_tokens,
    choices,
    choices_given,
)
from transformers import AutoModelForCausalLM

from moeba import MoebaForCausalLM
from moeba.conversion import FAMILIES

first_seed = pytest.mark.parametrize(
    "case", FIRST, indirect=True, ids=[f"{name}-{seed}" for name, seed in FIRST]
)
TOKENS = (8, 40)  # a few hundred decisions a router
SAME_EXPERTS = 0.999


def test_same_logits(case):
    assert_same_logits(case, case.ours, case.theirs)


def test_same_bits_by_the_same_products(case):
    if not case.exact:
        pytest.skip(case.family.reordered)
    assert_same_products(case, case.ours, case.theirs)


def test_same_tokens(case):
    assert_same_tokens(case, case.ours, case.theirs)


def test_same_gradients(case):
    assert_same_gradients(case, case.ours, case.theirs)


def test_same_in_bfloat16(case):
    """The difference is within the stock model's own noise, and the routers choose the same experts."""
    ids = case.ids(*TOKENS)
    ours = load(MoebaForCausalLM, case.half_moeba)
    theirs = load(AutoModelForCausalLM, case.half_source)
    # What bfloat16 costs the stock model: the same rounded weights, computed in float32.
    wide = load(AutoModelForCausalLM, case.half_source, dtype=torch.float32)
    for model in (ours, theirs, wide):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        a, b, c = (model(ids, use_cache=False).logits.float() for model in (ours, theirs, wide))
    difference, noise = (a - b).abs(), (c - b).abs()
    # Two computations that round independently lie up to twice as far apart as each from the truth.
    allowed = 1 if case.exact else 2
    assert difference.max() <= allowed * noise.max() and difference.mean() <= allowed * noise.mean()

    stock = choices(theirs, ids)
    if not case.family.to_moeba(case.config).sparse_layers:
        assert not stock
        return
    inputs, expected = zip(*stock, strict=True)
    assert agreement(choices_given(ours, inputs), expected) >= SAME_EXPERTS
    overall = agreement([experts for _, experts in choices(ours, ids)], expected)
    own = agreement([experts for _, experts in choices(wide, ids)], expected)
    assert overall >= (SAME_EXPERTS if case.exact else own), (overall, own)


@first_seed
def test_native_folder_is_read_directly(case):
    """`from_pretrained` of the native folder is the converted model."""
    ours, info = MoebaForCausalLM.from_pretrained(case.source, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert ours.config._name_or_path == str(case.source)
    expected = case.ours.state_dict()
    assert set(ours.state_dict()) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_same_function_everywhere(tmp_path_factory, model_type):
    """The wide proof: many configs, and the smallest one that fails."""

    @wide(12)
    @given(rng=st.randoms(use_true_random=False))
    def prove(rng) -> None:
        case = Case(config_from(model_type, rng), tmp_path_factory.mktemp(model_type), seed=rng.randrange(4))
        note(case.describe())
        assert_same_logits(case, case.ours, case.theirs)
        if case.exact:
            assert_same_products(case, case.ours, case.theirs)
        assert_same_tokens(case, case.ours, case.theirs)
        assert_same_gradients(case, case.ours, case.theirs)

    prove()

"""Rows of left padding: the stock model's, or the family says why not; real tokens read the same either way."""

from __future__ import annotations

import native
import pytest
import torch
from native import load
from support import random_ids
from transformers import AutoModelForCausalLM

from moeba import MoebaForCausalLM, convert
from moeba.conversion.families import FAMILIES
from moeba.conversion.families.shared.tensors import PADDED_ROWS
from moeba.library.upstream import can_set_attention

OWN_MASKS = [name for name, family in FAMILIES.items() if PADDED_ROWS in family.reordered]


def rows(folder, model_type: str) -> tuple[float, float]:
    """How far the logits of real and of padding rows are from the stock model's, in the worse of both attentions."""
    convert(native.make(folder / "source", model_type, seed=1), folder / "moeba", certificate=False)
    models = load(AutoModelForCausalLM, folder / "source"), load(MoebaForCausalLM, folder / "moeba")
    ids = random_ids(2, 12, 60)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    gaps = []
    for implementation in ("eager", "sdpa"):
        found = []
        for model in models:
            if can_set_attention(model):
                model.set_attn_implementation(implementation)
            with torch.no_grad():
                found.append(model(ids, attention_mask=mask).logits)
        distance = (found[0] - found[1]).abs() / found[0].std()
        gaps.append((distance[mask == 1].max().item(), distance[mask == 0].max().item()))
    return max(real for real, _ in gaps), max(padding for _, padding in gaps)


@pytest.mark.parametrize("model_type", OWN_MASKS)
def test_families_that_say_so_differ_in_rows_that_no_real_token_reads(tmp_path, model_type):
    real, padding = rows(tmp_path, model_type)
    assert real < 1e-5 < 1e-3 < padding


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "bloom", "biogpt", "llama", "phi"])
def test_all_others_have_the_stock_model_s_rows(tmp_path, model_type):
    assert max(rows(tmp_path, model_type)) < 1e-5


def test_the_known_ones_say_so():
    assert {"openai-gpt", "gpt_neo", "xglm"} <= set(OWN_MASKS)
    assert "alibi twice" in FAMILIES["falcon"].reordered and "4-D mask" in FAMILIES["gpt_neo"].reordered

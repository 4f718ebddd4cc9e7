"""Continuous batching: texts of different lengths in one row, over a paged cache, give the tokens of generate()."""

from __future__ import annotations

import pytest
import torch
from support import random_ids, tiny_model
from transformers import ContinuousBatchingConfig, GenerationConfig

SINKS = dict(attention_sink_layer_types=["full_attention"])
SHAPES = {
    "dense": ("dense", {}),
    "moe": ("moe", {}),
    "learned positions": ("learned_mlp", {}),
    "softcap and windows": ("capped", {}),
    "sinks": ("moe", SINKS),
    "sinks that take a share": ("moe", SINKS | dict(attention_sink_form="output_share")),
}
LATENT = dict(
    attention_type="latent", kv_lora_rank=12, qk_rope_head_dim=4, v_head_dim=8, num_key_value_heads=4
)
NEW = 4


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES)
def test_same_tokens_as_generate(shape, implementation):
    variant, fields = SHAPES[shape]
    model = tiny_model(variant, attn_implementation=implementation, **fields)
    prompts = [random_ids(1, length, seed=length)[0].tolist() for length in (3, 9, 5)]
    words = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    expected = [model.generate(torch.tensor([p]), **words)[0, len(p) :].tolist() for p in prompts]
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    few = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32)  # by default, what the machine has
    found = model.generate_batch(prompts, settings, continuous_batching_config=few, warmup=False)
    assert [found[name].generated_tokens for name in sorted(found)] == expected


@pytest.mark.parametrize(
    "variant, fields, named",
    [
        ("learned_mlp", dict(position_embedding_type="alibi"), "position_embedding_type='alibi'"),
        ("learned_mlp", dict(position_embedding_type="relative"), "position_embedding_type='relative'"),
        ("dense", LATENT, "attention_type='latent'"),
    ],
)
def test_a_part_that_cannot_is_named(variant, fields, named):
    model = tiny_model(variant, **fields)
    with pytest.raises(ValueError, match=f"Continuous batching cannot run {named}"):
        model(random_ids(1), write_index=[])


def test_without_sinks_there_is_no_such_attribute():
    """The library's paged attention asks for it with `hasattr`."""
    plain, with_sinks = tiny_model().model.layers[0].self_attn, tiny_model(**SINKS).model.layers[0].self_attn
    assert not hasattr(plain, "sinks") and hasattr(with_sinks, "sinks")

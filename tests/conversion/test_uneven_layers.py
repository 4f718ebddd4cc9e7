"""Models whose layers differ in their numbers of heads, through `per_layer_config`."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from native import draw, plain
from support import random_ids, randomise
from transformers import CONFIG_MAPPING

from moeba import MoebaConfig, MoebaForCausalLM
from moeba.conversion import family_of
from moeba.conversion.certificate.twin import shrink
from moeba.conversion.config_differences import differences
from moeba.library.upstream import cache_of

KINDS = ["full_attention", "sliding_attention", "full_attention"]


def uneven(model_type: str) -> MoebaConfig:
    """Our config of a stock one whose second layer has more heads than the others."""
    native = draw(model_type, 0)
    changes = {
        "num_hidden_layers": 3,
        "layer_types": KINDS,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    if model_type == "laguna":
        changes["num_attention_heads_per_layer"] = [4, 6, 4]
    ropes = dict.fromkeys(
        KINDS, {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    )
    changes |= {"head_dim": 8, "rope_parameters": ropes}
    return family_of(model_type).to_moeba(CONFIG_MAPPING[model_type](**{**plain(native), **changes}))


def sizes(config: MoebaConfig) -> list[tuple[int, int]]:
    return [(layer.num_attention_heads, layer.num_key_value_heads) for layer in config.per_layer_config]


every_family = pytest.mark.parametrize("model_type", ["laguna", "mimo_v2_flash"])


@every_family
def test_layers_keep_their_sizes(model_type):
    config = uneven(model_type)
    expected = {"laguna": [(4, 2), (6, 2), (4, 2)], "mimo_v2_flash": [(8, 2), (8, 4), (8, 2)]}[model_type]
    assert sizes(config) == expected
    assert sizes(MoebaConfig.from_dict(json.loads(config.to_json_string()))) == expected
    family = family_of(model_type)
    assert sizes(family.to_moeba(family.to_native(config))) == expected


@every_family
def test_facts_count_each_layer(model_type):
    config = uneven(model_type)
    model = randomise(MoebaForCausalLM(config)).eval()
    model.set_experts_implementation("eager")
    assert config.num_params() == model.num_parameters()
    cache = cache_of(model(random_ids(1, 1, config.vocab_size), use_cache=True))
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert config.kv_cache_bytes_per_token(4) == kept


@every_family
def test_saved_and_generating_with_either_cache(model_type, tmp_path):
    config = uneven(model_type)
    randomise(MoebaForCausalLM(config)).save_pretrained(tmp_path)
    model = MoebaForCausalLM.from_pretrained(tmp_path).eval()
    model.set_experts_implementation("eager")
    assert sizes(model.config) == sizes(copy.deepcopy(model.config)) == sizes(config)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = random_ids(2, 9, config.vocab_size)
    growing, fixed = (
        model.generate(ids, **settings, **more) for more in ({}, {"cache_implementation": "static"})
    )
    assert torch.equal(growing, fixed)


def test_same_sizes_spelled_otherwise():
    base = uneven("laguna").to_dict() | {"num_attention_heads": 6}
    base["per_layer_config"] = {i: {"num_attention_heads": 4} for i in (0, 2)}
    assert differences(uneven("laguna"), MoebaConfig.from_dict(base)) == []
    base["per_layer_config"] = {0: {"num_attention_heads": 4}}
    found = differences(uneven("laguna"), MoebaConfig.from_dict(base))
    assert [(item.name, item.second) for item in found] == [("num_attention_heads", [4, 6, 6])]


@every_family
def test_twin_keeps_the_ratios(model_type):
    expected = {"laguna": {(2, 1), (3, 1)}, "mimo_v2_flash": {(4, 1), (4, 2)}}
    assert set(sizes(shrink(uneven(model_type)))) == expected[model_type]

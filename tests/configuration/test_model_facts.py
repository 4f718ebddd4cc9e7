from __future__ import annotations

import random
from dataclasses import fields
from typing import get_args

import native
import pytest
import torch
from support import SIZES, tiny_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from moeba import MoebaConfig, MoebaForCausalLM
from moeba.configuration.model_facts import longrope_switch
from moeba.conversion.families import FAMILIES
from moeba.library.upstream import CACHE, cache_of


def draw(seed: int) -> MoebaConfig:
    """A config with every choice of part drawn at random."""
    rng = random.Random(seed)
    layers = rng.choice([1, 2, 3])
    norm = rng.choice(
        ["rmsnorm", "rmsnorm_float32", "rmsnorm_unit_offset", "rmsnorm_nonparametric", "layernorm"]
        + ["layernorm_nonparametric"]
    )
    fields = dict(
        SIZES,
        num_hidden_layers=layers,
        head_dim=rng.choice([4, 8]),
        num_key_value_heads=rng.choice([1, 2, 4]),
        tie_word_embeddings=rng.random() < 0.5,
        position_embedding_type=rng.choice(["rope", "learned", "sinusoidal", "none"]),
        norm_type=norm,
        norm_bias=rng.random() < 0.5 if norm == "layernorm" else True,
        final_norm=rng.random() < 0.8,
        block_order=rng.choice(
            ["pre_norm", "post_norm", "sandwich_norm", "output_norm", "parallel", "parallel_two_norms"]
        ),
        attention_bias=rng.random() < 0.5,
        attention_output_bias=rng.random() < 0.5,
        qk_norm=rng.choice(["none", "head", "full"]),
        feed_forward_type=rng.choice(["gated", "mlp"]),
        mlp_bias=rng.random() < 0.5,
        lm_head_bias=rng.random() < 0.5,
    )
    if fields["position_embedding_type"] == "learned":
        fields["position_offset"] = rng.choice([0, 2])
    if rng.random() < 0.5:
        kinds = [rng.choice(["sliding_attention", "full_attention"]) for _ in range(layers - 1)]
        fields |= dict(sliding_window=6, layer_types=[*kinds, "sliding_attention"])
    if rng.random() < 0.7:
        shared = rng.choice([0, 16])
        kinds = [rng.choice(["dense", "sparse"]) for _ in range(layers - 1)]
        fields |= dict(
            num_experts=12,
            num_experts_per_tok=rng.choice([1, 3]),
            moe_intermediate_size=rng.choice([8, 24]),
            mlp_layer_types=[*kinds, "sparse"],
            expert_bias=rng.random() < 0.5,
            shared_expert_intermediate_size=shared,
            shared_expert_gate=bool(shared) and rng.random() < 0.5,
            router_bias=rng.random() < 0.5,
            router_selection_bias=rng.random() < 0.5,
        )
        if "dense" not in kinds and not shared:
            fields["mlp_bias"] = False  # of nothing
        if rng.random() < 0.3:
            fields["per_layer_config"] = {layers - 1: {"num_experts": 5, "moe_intermediate_size": 16}}
    return MoebaConfig(**fields)


@pytest.mark.parametrize("seed", range(60))
def test_parameters_are_those_of_the_built_model(seed):
    config = draw(seed)
    with torch.device("meta"):
        model = MoebaForCausalLM(config)
    assert config.num_params() == sum(p.numel() for p in model.parameters())
    idle = 0
    for layer in model.model.layers:
        if hasattr(layer.mlp, "experts"):
            unused = layer.mlp.gate.num_experts - layer.mlp.gate.top_k
            idle += unused * sum(p[0].numel() for p in layer.mlp.experts.parameters())
    assert config.num_params(active_only=True) == config.num_params() - idle


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("past", [0, 9])
def test_flops_are_those_of_decoding_one_token(seed, past):
    config = draw(seed)
    config._attn_implementation = config._experts_implementation = "eager"  # what the counter can see
    model = MoebaForCausalLM(config).eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        if past:
            model(torch.ones(1, past, dtype=torch.long), **{CACHE: cache})
        with FlopCounterMode(display=False) as counter:
            model(torch.ones(1, 1, dtype=torch.long), **{CACHE: cache})
    assert counter.get_total_flops() == config.flops_per_token(past)


@pytest.mark.parametrize("seed", range(12))
def test_cache_bytes_are_those_of_a_real_cache(seed):
    config = draw(seed)
    model = MoebaForCausalLM(config).eval()
    tokens = 5  # fewer than the sliding window
    with torch.no_grad():
        cache = cache_of(model(torch.ones(3, tokens, dtype=torch.long), use_cache=True))
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert config.kv_cache_bytes_per_token(bytes_per_value=4) * 3 * tokens == held


def test_a_window_bounds_the_cost_of_attention():
    config = tiny_config("capped")
    growth = config.flops_per_token(1000) - config.flops_per_token(999)
    assert growth == 4 * 4 * 8  # of the one full layer: four operations for each of 4 heads of 8 dimensions


CHOICES = [
    (item.name, choice)
    for item in fields(MoebaConfig)
    if item.name
    in ("block_order", "norm_type", "qk_norm", "attention_output_gate", "position_embedding_type")
    for choice in get_args(item.type)
]


def built(config: MoebaConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MoebaForCausalLM(config).parameters())


@pytest.mark.parametrize("name, choice", CHOICES)
def test_parameters_with_every_choice_of_a_part(name, choice):
    """Each choice by itself, in a model whose sizes all differ."""
    config = MoebaConfig(
        **{
            **SIZES,
            "hidden_size": 24,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "num_hidden_layers": 2,
            name: choice,
        }
    )
    assert config.num_params() == built(config)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_parameters_of_every_family_s_parts(model_type, seed):
    """Latent attention, sinks, gates, learned activations, norms of outputs, uneven layers: what families have."""
    config = FAMILIES[model_type].to_moeba(native.draw(model_type, seed))
    assert config.num_params() == built(config)


@pytest.mark.parametrize("model_type", ["deepseek_v2", "youtu", "afmoe", "gpt_oss", "opt", "minimax_m2"])
@pytest.mark.parametrize("past", [0, 9])
def test_flops_and_cache_of_families_with_parts_of_their_own(model_type, past):
    """Latent attention, output gates, sinks, a narrow embedding."""
    config = FAMILIES[model_type].to_moeba(native.draw(model_type, 0))
    config._attn_implementation = config._experts_implementation = "eager"
    model = MoebaForCausalLM(config).eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        if past:
            model(torch.ones(1, past, dtype=torch.long), **{CACHE: cache})
        with FlopCounterMode(display=False) as counter:
            model(torch.ones(1, 1, dtype=torch.long), **{CACHE: cache})
    assert counter.get_total_flops() == config.flops_per_token(past)


def test_windows_and_learned_activations_and_longrope():
    """Facts that one choice alone decides."""
    for activation in ("silu", "xielu", "prelu"):
        config = MoebaConfig(**SIZES, feed_forward_type="mlp", hidden_act=activation)
        assert config.num_params() == built(config)
    assert longrope_switch(MoebaConfig(**SIZES)) is None
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, **factors}
    config = MoebaConfig(**{**SIZES, "head_dim": 8, "max_position_embeddings": 64}, rope_parameters=rope)
    assert longrope_switch(config) == 32
    assert longrope_switch(MoebaConfig(**SIZES, position_embedding_type="none")) is None
    # Without a context, a token still sees itself.
    config = tiny_config("capped")
    assert config.flops_per_token() == config.flops_per_token(0) < config.flops_per_token(1)

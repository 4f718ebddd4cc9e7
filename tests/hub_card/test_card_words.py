"""Every choice of the config has words, and numbers read well."""

from dataclasses import fields
from typing import get_args

import pytest
from card_folders import EXPERTS, SIZES

from moeba import MoebaConfig
from moeba.hub_card.text import words
from moeba.hub_card.text.words import (
    byte_size,
    cell,
    code,
    describe,
    figure,
    figures,
    number,
    router_rule,
    short_number,
)


@pytest.mark.parametrize(
    ("field", "table"),
    [
        ("norm_type", words.NORMS),
        ("block_order", words.BLOCK_ORDERS),
        ("position_embedding_type", words.POSITIONS),
        ("qk_norm", words.QK_NORMS),
        ("feed_forward_type", words.FEED_FORWARDS),
        ("scoring_func", words.SCORES),
        ("attention_output_gate", words.OUTPUT_GATES),
        ("router_type", {**words.ROUTERS, "topk": ""}),
    ],
)
def test_every_choice_has_words(field, table):
    (choices,) = (get_args(item.type) for item in fields(MoebaConfig) if item.name == field)
    assert set(table) == set(choices)


def test_a_dense_model():
    parts = describe(MoebaConfig(**SIZES, tie_word_embeddings=True))
    assert parts["Kind"].startswith("dense decoder") and "3 layers, 32 wide" in parts["Kind"]
    assert parts["Attention"] == "4 query heads share 2 key/value heads, each 8 wide"
    assert parts["Positions"] == "rotary (base 10,000); set up for 2,048 tokens"
    assert parts["Feed-forward"] == "gated, silu activation, 64 wide"
    assert parts["Head"] == "the token embeddings, used again"
    assert "Experts" not in parts and "Router" not in parts


def test_a_mixture_of_experts():
    config = MoebaConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=48, shared_expert_gate=True)
    parts = describe(config)
    assert parts["Feed-forward"].endswith("in 1 of 3 layers")
    assert parts["Experts"] == (
        "in 2 of 3 layers the feed-forward is 4 experts, gated, silu activation, each 64 wide; a token "
        "visits 2 of them, and a shared expert 48 wide, weighted by a gate of its own"
    )


@pytest.mark.parametrize(
    "factor, told",
    [(1.0, "made to sum to 1"), (2.0, "made to sum to 1, times 2"), (0.5, "made to sum to 1, times 0.5")],
)
def test_a_factor_is_told_where_there_is_one(factor, told):
    rule = router_rule(MoebaConfig(**SIZES, num_experts=8, routed_scaling_factor=factor))
    assert rule.endswith(f"and their scores are {told}")
    assert "groups" not in rule and "bias" not in rule and "softmax over all experts" in rule


def test_the_router_in_words():
    groups = dict(num_experts=8, n_group=4, topk_group=2, router_selection_bias=True)
    weights = dict(scoring_func="sigmoid", norm_topk_prob=False, routed_scaling_factor=2.5)
    config = MoebaConfig(**SIZES, **groups, **weights)
    assert router_rule(config) == (
        "scores are a sigmoid for each expert; only the best 2 of 4 groups of experts take part; the best 2 "
        "are chosen after a balancing bias is added, which does not count in the weights, and their scores "
        "are used as they are, times 2.5"
    )


def test_special_parts_are_named():
    scaled = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6, "partial_rotary_factor": 0.5}
    rope = {"full_attention": scaled, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    config = MoebaConfig(**SIZES, rope_parameters=rope, layer_types=kinds, sliding_window=16, qk_norm="head",
                         attn_logit_softcapping=50.0, final_logit_softcapping=30.0)  # fmt: skip
    parts = describe(config)
    assert "queries and keys normalised head by head, scores capped at 50" in parts["Attention"]
    assert "2 of 3 layers see the nearest 16 tokens only" in parts["Attention"]
    assert "full attention: base 1e+06, linear scaling by 8, over 50% of each head" in parts["Positions"]
    assert parts["Head"].endswith("logits capped at 30")


SPARSE = {**EXPERTS, "shared_expert_intermediate_size": 48}
LATENT = dict(
    attention_type="latent", kv_lora_rank=12, qk_rope_head_dim=4, v_head_dim=8, num_key_value_heads=4
)
PARTS = [
    ("Kind", {}, "dense decoder (a token sees those before it)", "mixture"),
    ("Kind", EXPERTS, "mixture-of-experts decoder", "dense"),
    ("Kind", dict(is_causal=False), "encoder (a token sees all others)", "decoder"),
    ("Attention", dict(num_key_value_heads=4), "4 heads, each", "share"),
    ("Attention", LATENT, "unfolded from a latent of 12 a token", "sinks"),
    ("Attention", dict(attention_output_gate="sigmoid"), "gated by a sigmoid", "capped"),
    (
        "Attention",
        dict(attention_sink_layer_types=["full_attention"]),
        "heads may attend to nothing (sinks)",
        "latent",
    ),
    ("Attention", {}, "each 8 wide", "sinks"),
    ("Attention", {}, "each 8 wide", "nearest"),
    ("Positions", dict(position_embedding_type="learned"), "at most 2,048 tokens", "set up for"),
    ("Positions", dict(rotary_layers=[True, False, True]), "in 2 of 3 layers", "scaling"),
    ("Positions", {}, "(base 10,000)", "layers"),
    ("Positions", {}, "(base 10,000)", "of each head"),
    ("Experts", SPARSE, "a shared expert 48 wide", "gate of its own"),
    ("Experts", {**SPARSE, "shared_expert_gate": True}, "48 wide, weighted by a gate of its own", "dense"),
    ("Experts", EXPERTS, "a token visits 2 of them", "shared"),
    ("Router", EXPERTS, "the best 2 are chosen, and their scores", "groups"),
    ("Router", {**EXPERTS, "n_group": 2, "topk_group": 1}, "only the best 1 of 2 groups", "bias"),
    ("Head", {}, "weights of its own", "capped"),
]


@pytest.mark.parametrize("part, given, told, untold", PARTS)
def test_what_a_model_has_is_told_and_nothing_else(part, given, told, untold):
    words = describe(MoebaConfig(**{**SIZES, **given}))[part]
    assert told in words and untold not in words


def test_layers_that_differ_give_a_range():
    config = MoebaConfig(**SIZES, num_experts=4, per_layer_config={1: {"num_experts": 3}})
    assert "3 to 4 experts" in describe(config)["Experts"]


def test_numbers():
    assert [short_number(n) for n in (12, 1234, 999_600, 46_702_792_704)] == ["12", "1.23K", "1000K", "46.7B"]
    assert [short_number(10**n) for n in (0, 2, 3, 6, 9, 12)] == ["1", "100", "1K", "1M", "1B", "1T"]
    assert [number(n) for n in (999_999, 10**6)] == ["999,999", "1M (1,000,000)"]
    assert [byte_size(n) for n in (12, 1.5e6, 999.9e6)] == ["12 bytes", "1.5 MB", "1000 MB"]
    assert [byte_size(10**n) for n in (1, 3, 6, 9, 12)] == ["10 bytes", "1 kB", "1 MB", "1 GB", "1 TB"]
    assert [figure(v) for v in (["a", "b"], [], [1, "a"], False, 2.0)] == [
        '["a", "b"]',
        "[]",
        '[1, "a"]',
        "no",
        "2",
    ]
    assert figures({"max_abs_diff": 1.2e-6, "tokens": 512}) == "max abs diff 1.2e-06, tokens 512"
    assert [figure(v) for v in (1.23456e-6, True, 12, "a", [0.1, 0.25])] == [
        "1.23e-06",
        "yes",
        "12",
        "a",
        "at most 0.25",
    ]


def test_text_from_files_cannot_leave_its_place():
    assert cell("a\n<!-- moeba:end -->|b") == "a &lt;!-- moeba:end -->\\|b"
    assert code("a`\nb|") == "`a' b\\|`"

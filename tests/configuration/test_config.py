from __future__ import annotations

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from support import SIZES, SPARSE, VARIANTS, tiny_config
from transformers import AutoConfig, PreTrainedConfig

from moeba import MoebaConfig, MoebaForCausalLM

KINDS = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 32.0),
        ("hidden_size", True),
        ("is_causal", 1),
        ("num_experts", "4"),
        ("num_local_experts", "4"),
        ("norm_type", "rms"),
        ("block_order", "post"),
        ("rope_parameters", [1]),
        ("layer_types", "full_attention"),
        ("attention_bias", None),
    ],
)
def test_fields_are_typed(field, value):
    with pytest.raises(StrictDataclassError, match=MoebaConfig.attribute_map.get(field, field)):
        tiny_config(**{field: value})


def test_fields_stay_typed_after_construction():
    config = tiny_config()
    with pytest.raises(StrictDataclassError, match="norm_type"):
        config.norm_type = "batchnorm"


CONTRADICTIONS = {
    "hidden_size": dict(hidden_size=0),
    "vocab_size": dict(vocab_size=0),
    "kv_heads": dict(num_key_value_heads=3),
    "no_heads": dict(num_attention_heads=0, num_key_value_heads=1),
    "indivisible": dict(head_dim=None, hidden_size=34),
    "experts_per_token": dict(num_experts=4, num_experts_per_tok=5),
    "zero_per_token": dict(num_experts=4, num_experts_per_tok=0),
    "groups": dict(num_experts=12, n_group=5),
    "topk_group": dict(num_experts=12, n_group=2, topk_group=3),
    "small_groups": dict(num_experts=12, num_experts_per_tok=5, n_group=4, topk_group=1),
    "lonely_groups": dict(num_experts=4, n_group=4, topk_group=4),
    "sparse_without_experts": dict(mlp_layer_types=["dense", "sparse"]),
    "experts_without_sparse": dict(num_experts=4, mlp_layer_types=["dense", "dense"]),
    "mlp_layer_types": dict(num_experts=4, mlp_layer_types=["sparse"]),
    "mlp_layer_kind": dict(mlp_layer_types=["dense", "spares"]),
    "layer_types": dict(layer_types=["full_attention"]),
    "layer_kind": dict(layer_types=["full_attention", "chunked_attention"]),
    "no_window": dict(layer_types=KINDS),
    "window": dict(sliding_window=0),
    "hidden_act": dict(hidden_act="sillu"),
    "dropout": dict(attention_dropout=1.0),
    "jitter": dict(router_jitter_noise=1.5),
    "negative_coefficient": dict(router_aux_loss_coef=-0.1),
    "norm_bias": dict(norm_bias=False),
    "offset": dict(position_offset=2),
    "softcap": dict(attn_logit_softcapping=0),
    "final_softcap": dict(final_logit_softcapping=-1.0),
    "shared_gate": dict(num_experts=4, shared_expert_gate=True),
    "rope_type": dict(rope_parameters={"rope_type": "yran", "factor": 2.0}),
    "rope_part": dict(partial_rotary_factor=0.4),
    "rope_kinds": dict(
        sliding_window=4, layer_types=KINDS, rope_parameters={"full_attention": {"rope_theta": 1e4}}
    ),
    "rope_other_kind": dict(rope_parameters={"sliding_attention": {"rope_theta": 1e4}}),
    "rope_theta": dict(position_embedding_type="learned", rope_theta=1e6),
    "rope_dict": dict(position_embedding_type="none", rope_parameters={"rope_type": "default"}),
    "two_spellings": dict(num_experts=4, num_local_experts=8),
}
NAMED = {
    "no_heads": "num_attention_heads=0",
    "indivisible": "hidden_size=34.*num_attention_heads=4",
    "kv_heads": "num_attention_heads=4.*num_key_value_heads=3",
    "experts_per_token": "num_experts_per_tok=5.*num_experts=4",
    "small_groups": "topk_group=1.*n_group=4.*num_experts_per_tok=5",
    "no_window": "sliding_window=None",
    "hidden_act": "sillu.*nearest: 'silu'",
    "rope_type": "yran",
    "rope_kinds": "not for 'sliding_attention'",
    "two_spellings": "num_local_experts=8 contradicts num_experts=4",
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused_by_name(case):
    fields = CONTRADICTIONS[case]
    named = NAMED.get(case) or "|".join(sorted(set(fields) - {"num_experts", "layer_types"} or set(fields)))
    with pytest.raises((ValueError, StrictDataclassError), match=f"(?s)({named})"):
        tiny_config(**fields)


def test_a_contradiction_made_later_is_refused_at_saving(tmp_path):
    config = tiny_config("moe")
    config.num_experts_per_tok = 13
    with pytest.raises(StrictDataclassError, match="num_experts_per_tok=13"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("typo", "nearest"), [("num_expert", "num_experts"), ("rms_norm_epss", "rms_norm_eps")]
)
def test_misspelt_fields_are_refused(typo, nearest):
    with pytest.raises(ValueError, match=f"{typo}=1 .*{nearest}"):
        tiny_config(**{typo: 1})


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("num_local_experts", "num_experts", 4),
        ("n_routed_experts", "num_experts", 4),
        ("moe_num_experts", "num_experts", 4),
        ("rms_norm_eps", "norm_eps", 1e-3),
        ("layer_norm_epsilon", "norm_eps", 1e-3),
        ("aux_loss_coef", "router_aux_loss_coef", 0.5),
    ],
)
def test_other_spellings(alias, name, value, tmp_path):
    config = tiny_config(**{alias: value})
    assert getattr(config, name) == getattr(config, alias) == value
    assert alias not in config.to_dict()
    if name == "num_experts":
        assert config.sparse_layers == [0, 1]
    config.save_pretrained(tmp_path)
    assert getattr(MoebaConfig.from_pretrained(tmp_path), alias) == value


def test_defaults_follow_other_fields():
    config = MoebaConfig(hidden_size=48, num_attention_heads=4, intermediate_size=7, attention_bias=True)
    assert (config.head_dim, config.num_key_value_heads, config.moe_intermediate_size) == (12, 4, 7)
    assert config.attention_output_bias
    assert config.layer_types == ["full_attention"] * 12
    assert config.mlp_layer_types == ["dense"] * 12
    assert MoebaConfig(sliding_window=4).layer_types == ["sliding_attention"] * 12
    assert MoebaConfig(num_experts=4).mlp_layer_types == ["sparse"] * 12


ROPES = {
    "default": {"rope_type": "default", "rope_theta": 5e4},
    "partial": {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 2.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.2, 2.4, 2.6],
        "original_max_position_embeddings": 32,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "nested": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
}


@pytest.mark.parametrize(
    "fields",
    [
        *VARIANTS.values(),
        *(dict(rope_parameters=rope) for name, rope in ROPES.items() if "full_attention" not in rope),
        dict(rope_parameters=ROPES["nested"], layer_types=KINDS, sliding_window=4),
        dict(rotary_layers=[True, False]),
        dict(num_labels=5, dtype="bfloat16", eos_token_id=[1, 2], tie_word_embeddings=True),
        dict(**SPARSE, per_layer_config={1: {"num_experts": 4, "moe_intermediate_size": 8}}),
    ],
)
def test_round_trip(fields, tmp_path):
    config = MoebaConfig(**{**SIZES, **fields})
    config.save_pretrained(tmp_path)
    again = MoebaConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.to_diff_dict() == config.to_diff_dict()
    automatic = AutoConfig.from_pretrained(tmp_path)
    assert type(automatic) is MoebaConfig
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


def test_only_facts_of_the_architecture_are_written(tmp_path):
    config = tiny_config("moe", attn_implementation="eager", experts_implementation="grouped_mm")
    config.save_pretrained(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    assert not [name for name in text if "implementation" in name or "plan" in name or name.startswith("_")]


def test_the_callers_dict_is_not_changed():
    rope = {"rope_type": "linear", "factor": 2.0}
    tiny_config(rope_parameters=rope)
    assert rope == {"rope_type": "linear", "factor": 2.0}


def test_legacy_rope_settings_reach_rope_parameters():
    config = tiny_config(rope_theta=5e5, partial_rotary_factor=0.5)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}
    config = tiny_config(
        rope_scaling={"type": "yarn", "factor": 2.0}, rope_theta=5e5, original_max_position_embeddings=32
    )
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["original_max_position_embeddings"] == 32


def test_each_layer_of_an_uneven_model_is_validated():
    with pytest.raises(
        StrictDataclassError, match="num_experts_per_tok=3 must be between 1 and num_experts=2"
    ):
        tiny_config(**SPARSE, per_layer_config={1: {"num_experts": 2}})


def test_library_settings_are_no_unknown_fields():
    config = tiny_config(num_labels=3, torch_dtype="float32", output_attentions=True, architectures=["A"])
    assert config.num_labels == 3
    assert isinstance(config, PreTrainedConfig)


def test_foreign_config_type_is_not_taken_for_ours(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "moebius", "hidden_size": 8}))
    with pytest.raises(ValueError, match="moebius"):
        AutoConfig.from_pretrained(tmp_path)


def test_a_bidirectional_model_has_no_causal_head():
    with pytest.raises(ValueError, match="is_causal=False"):
        MoebaForCausalLM(tiny_config(is_causal=False))


def test_attributes_that_a_tool_added_survive_a_reload(tmp_path):
    """Only the constructor refuses unknown names: what was saved must load."""
    config = tiny_config()
    config.added_by_a_tool = 7
    config.save_pretrained(tmp_path)
    assert MoebaConfig.from_pretrained(tmp_path).added_by_a_tool == 7

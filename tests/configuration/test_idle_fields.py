"""A field that has nothing to act on is refused where somebody says it, and stays where a file has it."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Literal, get_args, get_origin

import pytest
import torch
from support import SIZES, SPARSE, random_ids, randomise, tiny_config

from moeba import MoebaConfig, MoebaForCausalLM
from moeba.configuration.schema import FACTS, is_idle
from moeba.library.upstream import PreTrainedConfig

DENSE: dict = {}
MIXTURE = dict(**SPARSE, mlp_layer_types=["dense", "sparse"])
SAID_IN_VAIN = {
    "sparsemixer_eps": dict(sparsemixer_eps=0.1, **MIXTURE),
    "expert_bias": dict(expert_bias=True),
    "router_bias": dict(router_bias=True),
    "num_experts_per_tok": dict(num_experts_per_tok=4),
    "alibi_bias_max": dict(alibi_bias_max=4),
    "swiglu_alpha": dict(swiglu_alpha=2.0, feed_forward_type="mlp"),
    "sliding_window": dict(sliding_window=8, layer_types=["full_attention"] * 2),
    "relative_attention_num_buckets": dict(relative_attention_num_buckets=8),
    "qk_norm_eps": dict(qk_norm_eps=0.1),
    "topk_group": dict(topk_group=1, group_scoring="max", **MIXTURE),
    "norm_topk_eps": dict(norm_topk_eps=0.1, norm_topk_prob=False, **MIXTURE),
    "shared_expert_combination": dict(shared_expert_combination="average", **MIXTURE),
    "attention_sink_form": dict(attention_sink_form="output_share"),
    "round_embedding_multiplier": dict(round_embedding_multiplier=True),
    "longrope_factors": dict(longrope_factors="short"),
    "hidden_act": dict(hidden_act="gelu", feed_forward_type="clamped_gated"),
    "rotary_precision": dict(rotary_precision="float32", rotary_layers=[False, False]),
}
NAMED = {"topk_group": "group_scoring"}
SLOPES = dict(position_embedding_type="alibi")
LATENT = dict(attention_type="latent", num_key_value_heads=4, kv_lora_rank=8, qk_rope_head_dim=4)
OTHER_ROUTER = dict(router_type="topk_softmax", **MIXTURE)
# Files that say one of these beside those are refused as well: the model would be another one than was meant.
SAID_STRICTLY = {
    "q_lora_rank": (8, DENSE), "kv_lora_rank": (8, DENSE), "qk_rope_head_dim": (4, DENSE),
    "rope_interleave": (True, DENSE), "position_offset": (2, DENSE), "query_growth_beta": (0.1, SLOPES),
    "rotary_layers": ([True, True], SLOPES), "scoring_func": ("sigmoid", OTHER_ROUTER),
    "n_group": (2, OTHER_ROUTER), "router_selection_bias": (True, OTHER_ROUTER),
    "routed_scaling_factor": (2.0, OTHER_ROUTER), "shared_expert_gate": (True, MIXTURE),
    "router_z_loss_coef": (0.1, dict(router_loss="none", **MIXTURE)), "clip_qkv": (1.0, LATENT),
    "qk_norm": ("head", LATENT), "attention_value_multiplier": (2.0, LATENT),
    "attention_output_gate": ("sigmoid", LATENT),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID_IN_VAIN)
def test_what_is_set_in_vain_is_told_when_the_model_is_built(name, caplog):
    """Not refused: tools set `sliding_window`, say, on the config of any model."""
    said = {**SIZES, **SAID_IN_VAIN[name]}
    field = NAMED.get(name, name)
    value = said.pop(field)
    config = MoebaConfig(**said)
    setattr(config, field, value)
    assert "_said" not in config.to_dict() and config == copy.deepcopy(config)
    MoebaForCausalLM(config)
    assert f"{field}={value!r} has no effect without" in caplog.text
    caplog.clear()
    MoebaForCausalLM(MoebaConfig.from_dict(config.to_dict()))  # a file may say it
    assert "no effect" not in caplog.text


@pytest.mark.parametrize("name", SAID_IN_VAIN)
def test_said_to_the_constructor(name):
    with pytest.raises(ValueError, match=f"{NAMED.get(name, name)}=.* has no effect without"):
        tiny_config(**SAID_IN_VAIN[name])


@pytest.mark.parametrize("name", ["expert_bias", "router_bias", "swiglu_alpha", "alibi_bias_max"])
def test_said_as_an_override(name):
    said = dict(SAID_IN_VAIN[name])
    saved = tiny_config(**{key: said.pop(key) for key in list(said) if key != name}).to_dict()
    with pytest.raises(ValueError, match=f"{name}=.* has no effect without"):
        MoebaConfig.from_dict(saved, **said)


def test_every_strict_need_is_tried():
    strict = {name for name, facts in FACTS.items() if any(needs.strict for needs in facts.needs)}
    assert strict == set(SAID_STRICTLY)


@pytest.mark.parametrize("name", SAID_STRICTLY)
def test_a_file_that_says_it_strictly_is_refused(name):
    value, others = SAID_STRICTLY[name]
    saved = tiny_config(**others).to_dict()
    with pytest.raises(ValueError, match=f"{name}=.* has no effect without"):
        MoebaConfig.from_dict({**saved, name: value})


@pytest.mark.parametrize("name", SAID_IN_VAIN)
def test_a_file_that_says_it_loads(name):
    """Earlier versions wrote such files."""
    said = SAID_IN_VAIN[name]
    vain = NAMED.get(name, name)
    plain = tiny_config(**{key: value for key, value in said.items() if key != vain})
    read = MoebaConfig.from_dict({**plain.to_dict(), vain: said[vain]})
    assert read.to_dict() == {**plain.to_dict(), vain: said[vain]}
    MoebaForCausalLM(read)


def test_an_override_may_leave_a_saved_field_without_effect():
    saved = tiny_config(
        **SPARSE, shared_expert_intermediate_size=16, shared_expert_combination="average"
    ).to_dict()
    assert MoebaConfig.from_dict(saved, shared_expert_intermediate_size=0).sparse_layers


# Fields of ours that no forward of a causal model shows, each with what does read it.
ELSEWHERE = {
    "initializer_range": "fresh weights", "classifier_dropout": "other heads", "router_aux_loss_coef": "the loss",
    "router_z_loss_coef": "the loss", "output_router_logits": "the outputs", "use_cache": "generation",
    "pad_token_id": "the padding's gradient", "bos_token_id": "generation", "eos_token_id": "generation",
    "train_padding_embedding": "the padding's gradient", "max_position_embeddings": "tools, and dynamic rope",
    "tie_word_embeddings": "which weights are shared", "router_param_dtype": "half precision",
    "router_matmul_dtype": "half precision", "router_score_dtype": "half precision",
    "router_weight_dtype": "half precision", "attention_score_dtype": "half precision",
    "attention_softmax_dtype": "half precision", "rotary_precision": "half precision", "alibi_dtype": "half precision",
    "round_embedding_multiplier": "half precision", "norm_type": "half precision", "topk_sorted": "the order of a sum",
    "positions_from_attention_mask": "padding", "longrope_restarts_cache": "generate()", "group_mask": "ties",
    "attention_sink_form": "the order of rounding", "sparsemixer_eps": "logits that are close",
    "swiglu_limit": "large activations", "clip_qkv": "large activations",
}  # fmt: skip


def other_value(config: MoebaConfig, field):
    """A valid value that the field does not have here, if one is easily found."""
    now = getattr(config, field.name, None)
    if get_origin(field.type) is Literal:
        return next(value for value in get_args(field.type) if value != now)
    if isinstance(now, bool):
        return not now
    if isinstance(now, int):
        return now + 1
    return now * 0.5 + 0.3 if isinstance(now, float) else None


BASES = {
    "dense": DENSE,
    "mixture": MIXTURE,
    "all sparse": SPARSE,
    "classic": dict(position_embedding_type="learned", norm_type="layernorm", feed_forward_type="mlp"),
    "softmax of the best": dict(**SPARSE, router_type="topk_softmax", feed_forward_type="clamped_gated"),
}


@pytest.mark.parametrize("base", BASES)
def test_what_changes_nothing_is_refused(base):
    """Each field, set to another value: the model changes, or the constructor refuses it, or more than it reads it."""
    said = {**SIZES, **BASES[base]}
    config = MoebaConfig(**said)
    model = MoebaForCausalLM(config)
    state, ids = model.state_dict(), random_ids(1, 9)
    inherited = {field.name for field in fields(PreTrainedConfig)}
    may_idle = {name for name, facts in FACTS.items() if facts.may_idle}
    silent = []
    for field in fields(MoebaConfig):
        value = other_value(config, field)
        if field.name in inherited | ELSEWHERE.keys() | may_idle or value is None:
            continue
        changed = copy.deepcopy(config)
        setattr(changed, field.name, value)
        try:
            other = MoebaForCausalLM(changed)
        except ValueError:
            continue  # it contradicts another field
        if {name: tensor.shape for name, tensor in other.state_dict().items()} == {
            name: tensor.shape for name, tensor in state.items()
        }:
            other.load_state_dict(state)
            if same_outputs(model, other, ids):
                silent.append((field.name, value))
    for name, value in silent:
        assert is_idle(config, name), (
            f"{name}={value} changes nothing, and the field does not say so: let modeling/ read it, or say what it "
            "`needs`; what logits do not show stands in ELSEWHERE"
        )
        with pytest.raises(ValueError, match=f"{name}="):
            MoebaConfig(**{**said, name: value})


# Configs in which the fields act that are idle in all of these, and another value of each.
ACTING = {
    "scale": (dict(logit_scale=2.0), dict(logit_scale_operation="divide")),
    "norms of queries": (
        dict(qk_norm="head", qk_norm_type="layernorm"),
        dict(qk_norm_eps=0.5, qk_norm_bias=False, qk_norm_type="rmsnorm", qk_norm_after_rope=True),
    ),
    "kinds of layers": (
        dict(
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention"],
            attention_sink_layer_types=["full_attention"],
        ),
        dict(sliding_window=4, attention_sink_layer_types=["sliding_attention"]),
    ),
    "latent": (LATENT, dict(q_lora_rank=12, kv_lora_rank=6, qk_rope_head_dim=2, rope_interleave=True)),
    "longrope": (
        dict(
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=1e4,
                factor=4.0,
                original_max_position_embeddings=4,
                short_factor=[1.0] * 4,
                long_factor=[2.0] * 4,
            )
        ),
        dict(longrope_factors="short"),
    ),
    "slopes": (SLOPES, dict(alibi_bias_max=4, alibi_multiplier=2.0)),
    "distances": (
        dict(
            position_embedding_type="relative",
            relative_attention_num_buckets=4,
            relative_attention_max_distance=4,
        ),
        dict(relative_attention_num_buckets=6, relative_attention_max_distance=30),
    ),
    "shared expert": (
        dict(**SPARSE, shared_expert_intermediate_size=16),
        dict(shared_expert_gate=True, shared_expert_combination="average"),
    ),
    "groups": (dict(**SPARSE, n_group=4, topk_group=2), dict(topk_group=3, group_scoring="max")),
    "jitter": (dict(**SPARSE, router_jitter_noise=0.3), dict(router_jitter_draws=2)),
}


def test_every_field_acts_somewhere():
    configs = [MoebaConfig(**SIZES, **said) for said in BASES.values()]
    idle = {name for name in FACTS if all(is_idle(config, name) for config in configs)}
    tried = {name for _, others in ACTING.values() for name in others}
    assert tried | ELSEWHERE.keys() >= idle, "give each a config in ACTING in which it acts"


@pytest.mark.parametrize(
    ("base", "name"), [(base, name) for base, (_, others) in ACTING.items() for name in others]
)
def test_it_acts_where_it_has_what_it_needs(base, name):
    said, others = ACTING[base]
    said = {**SIZES, **said}
    config, changed = MoebaConfig(**said), MoebaConfig(**{**said, name: others[name]})
    assert not is_idle(config, name)
    model, other = (randomise(MoebaForCausalLM(one), seed=1) for one in (config, changed))
    try:
        other.load_state_dict(model.state_dict())
    except RuntimeError:
        return  # other tensors
    assert not same_outputs(model, other, random_ids(1, 9))


def same_outputs(one, other, ids) -> bool:
    for training in (False, True):
        torch.manual_seed(0)
        first = one.train(training)(ids).logits
        torch.manual_seed(0)
        if not torch.equal(first, other.train(training)(ids).logits):
            return False
    return True

"""Every road to a model refuses what no model can be made of, with the field and its value."""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from support import SIZES, SPARSE, VARIANTS, random_ids, tiny_config, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from moeba import MoebaConfig, MoebaForCausalLM

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved mixture with a window in one layer."""
    path = tmp_path_factory.mktemp("saved")
    kinds = ["sliding_attention", "full_attention"]
    tiny_model("moe", layer_types=kinds, sliding_window=8).save_pretrained(path)
    return path


def through_constructor(folder, **said):
    return MoebaConfig(**{**json.loads((folder / "config.json").read_text()), **said})


def through_file(folder, **said):
    return MoebaConfig.from_dict({**json.loads((folder / "config.json").read_text()), **said})


def through_override(folder, **said):
    return MoebaForCausalLM.from_pretrained(folder, **said)


def through_auto_config(folder, **said):
    return AutoConfig.from_pretrained(folder, **said)


def through_attribute(folder, **said):
    config = MoebaConfig.from_pretrained(folder)
    for name, value in said.items():
        setattr(config, name, value)
    return MoebaForCausalLM(config)


def through_auto_model(folder, **said):
    config = MoebaConfig.from_pretrained(folder)
    for name, value in said.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config)


ROADS = [
    through_constructor, through_file, through_override, through_auto_config, through_attribute, through_auto_model,
]  # fmt: skip
IMPOSSIBLE: dict[str, Any] = dict(
    num_experts_per_tok=0, num_experts=2, norm_eps=-1.0, hidden_act="banana", n_group=5, attention_multiplier=-1.0,
    sliding_window=1, pad_token_id=67, routed_scaling_factor=NAN, num_hidden_layers=-1, attention_dropout=1.0,
    qk_norm_type="batchnorm", is_encoder_decoder=True, problem_type="banana", attention_value_multiplier=1e38,
    final_logit_softcapping=1e-300, native_fields={"a": 3}, dtype="banana",
    rope_parameters={"rope_type": "default", "rope_theta": 0},
)  # fmt: skip


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_every_road_refuses(folder, road, name):
    value = IMPOSSIBLE[name]
    shown = "rope_theta=0" if name == "rope_parameters" else re.escape(f"{name}={value!r}")
    if name == "dtype" and road in (through_override, through_auto_config, through_auto_model):
        pytest.skip("transformers takes the dtype of a loaded model itself")
    with pytest.raises(ValueError, match=shown) as caught:
        road(folder, **{name: value})
    assert "\n" not in str(caught.value)


def floats() -> list[str]:
    return [field.name for field in fields(MoebaConfig) if float in (field.type, *get_args(field.type))]


@pytest.mark.parametrize("name", floats())
def test_no_field_is_infinite(name):
    for value in (NAN, INF, -INF, 1e300):
        with pytest.raises(ValueError, match=f"{name}=.* finite"):
            tiny_config("moe", **{name: value})


@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "num_experts", "hidden_size", "vocab_size", "intermediate_size"]
)
def test_counts_that_fill_the_memory_are_refused_first(name):
    with pytest.raises(ValueError, match=f"{name}=1000000000000 must be at most"):
        tiny_config("moe", **{name: 10**12})
    with pytest.raises(ValueError, match=f"{name}=1000000000000 must be at most"):
        MoebaConfig.from_dict({"model_type": "moeba", name: 10**12})


def test_an_override_is_followed(folder):
    model = MoebaForCausalLM.from_pretrained(folder, num_experts_per_tok=1)
    assert [layer.mlp.gate.top_k for layer in model.model.layers if hasattr(layer.mlp, "gate")] == [1]
    assert MoebaConfig.from_pretrained(folder, num_local_experts=12).num_experts == 12
    assert MoebaConfig.from_pretrained(folder, rope_theta=5e5).rope_parameters["rope_theta"] == 5e5
    scaled = MoebaConfig.from_pretrained(folder, rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert scaled.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert not any(MoebaConfig.from_pretrained(folder, position_embedding_type="none").rotary_layers)


def test_fewer_layers_are_the_first_ones(folder):
    """As in stock models: a part of a model to try things on."""
    model = MoebaForCausalLM.from_pretrained(folder, num_hidden_layers=1).eval()
    assert model.config.layer_types == ["sliding_attention"] and model.config.mlp_layer_types == ["dense"]
    assert torch.isfinite(model(random_ids()).logits).all()
    with pytest.raises(ValueError, match="num_hidden_layers=3"):
        MoebaConfig.from_pretrained(folder, num_hidden_layers=3)


LATER = dict(
    head_dim=None,
    v_head_dim=None,
    layer_types=None,
    rotary_layers=[],
    rope_parameters={"rope_type": "default"},
)


@pytest.mark.parametrize("name", LATER)
def test_what_construction_fills_in_is_not_emptied_later(folder, name):
    with pytest.raises(ValueError, match=f"rope_theta|{name}"):
        through_attribute(folder, **{name: LATER[name]})


TWICE = {
    "rope_theta": dict(rope_theta=5e5, rope_parameters={"rope_theta": 1e4}),
    "rope_scaling": dict(
        rope_scaling={"rope_type": "linear", "factor": 2.0}, rope_parameters={"rope_type": "linear", "factor": 4.0}
    ),
    "partial_rotary_factor": dict(partial_rotary_factor=0.5, rope_parameters={"partial_rotary_factor": 1.0}),
    "torch_dtype": dict(torch_dtype="float16", dtype="bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("name", TWICE)
def test_two_spellings_with_two_values(name):
    with pytest.raises(ValueError, match=f"{name}=.* contradicts .* one field"):
        tiny_config(**TWICE[name])


SCALED = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}
WRONG_ROPES = {
    "typo": ({"rope_thetaa": 5e5}, r"rope_thetaa=500000.0 \(nearest: rope_theta\)"),
    "zero base": ({"rope_theta": 0}, "rope_theta=0 .* positive"),
    "negative base": ({"rope_theta": -1.0}, "rope_theta=-1.0 .* positive"),
    "text": ({"rope_theta": "1e4"}, "rope_theta='1e4'"),
    "negative factor": ({"rope_type": "linear", "factor": -2.0}, "factor=-2.0 .* positive"),
    "no factor": ({"rope_type": "dynamic"}, "'dynamic' needs factor"),
    "zero factor": ({**SCALED, "factor": 0}, "factor=0 .* positive"),
    "NaN": ({**SCALED, "attention_factor": NAN}, "attention_factor=nan"),
    "no length": ({**SCALED, "original_max_position_embeddings": 0.5}, "original_max_position_embeddings=0.5"),
    "short list": (
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4,
         "original_max_position_embeddings": 16}, "short_factor .* has 1 numbers: this head needs 4"),
    "frequencies": (
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
         "original_max_position_embeddings": 16}, "high_freq_factor=1.0 .* above low_freq_factor=4.0"),
    "of one token": (
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4,
         "original_max_position_embeddings": 1}, "original_max_position_embeddings=1 .* logarithm"),
    "huge factor": ({"rope_type": "linear", "factor": 1e-38}, "factor=1e-38 .* positive"),
    "of another kind": ({"factor": 2.0}, "factor=2.0, which rope_type='default' does not read"),
    "beside kinds": (
        {"rope_theta": 5e5, "full_attention": {"rope_type": "default", "rope_theta": 1e4}},
        "rope_theta=500000.0, beside one dict a kind of layer"),
    "missing": ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}, "high_freq_factor"),
    "kind": ({"rope_type": []}, r"rope_type=\[\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_ROPES)
def test_rope_settings(case):
    rope, message = WRONG_ROPES[case]
    with pytest.raises(ValueError, match=message):
        tiny_config(rope_parameters=rope)


def test_what_a_message_shows_is_short_and_on_one_line():
    for said in (dict(hidden_act="gelu\n"), dict(vocab_size=10**5000), {f"k{i}": i for i in range(3000)}):
        with pytest.raises(ValueError) as caught:
            tiny_config(**said)
        assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_labels_are_counted_before_they_are_named():
    with pytest.raises(ValueError, match="num_labels=1000000000000 must be at most"):
        tiny_config(num_labels=10**12)


@pytest.mark.parametrize(
    ("name", "value"), [("hidden_act", "gelu"), ("hidden_size", 64), ("qk_norm", "head")]
)
def test_what_layers_have_together(name, value):
    with pytest.raises(
        ValueError, match=rf"per_layer_config has {name}=.* for layer 1: only all layers together"
    ):
        tiny_config(per_layer_config={1: {name: value}})
    tiny_config(per_layer_config={1: {name: getattr(tiny_config(), name), "intermediate_size": 32}})


def test_no_file_takes_a_methods_place():
    with pytest.raises(ValueError, match="config.json has to_dict: a config has a method of that name"):
        MoebaConfig.from_dict({"model_type": "moeba", "to_dict": 5})


def test_a_saved_rope_setting_that_nobody_reads_loads():
    saved = tiny_config().to_dict()
    saved["rope_parameters"]["finetuned"] = True
    assert MoebaConfig.from_dict(saved).rope_parameters["finetuned"] is True


@pytest.mark.parametrize(
    ("name", "value"), [("num_experts_per_tok", 4), ("norm_eps", 0.5), ("hidden_act", "relu")]
)
def test_a_field_set_on_a_built_model_is_not_ignored(folder, name, value):
    model = MoebaForCausalLM.from_pretrained(folder).eval()
    before = model(random_ids()).logits
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match=rf"config.{name} was set to .*from_pretrained\(folder, {name}="):
        model(random_ids())
    setattr(model.config, name, getattr(MoebaConfig.from_pretrained(folder), name))
    assert torch.equal(model(random_ids()).logits, before)


def test_the_plan_follows_what_was_set_before_the_model_was_built():
    config = tiny_config()
    config.qk_norm = "full"
    assert (
        MoebaForCausalLM(config).config.base_model_tp_plan == tiny_config(qk_norm="full").base_model_tp_plan
    )


def test_what_tools_set_on_a_built_model_is_no_fault():
    model = tiny_model("moe")
    model.resize_token_embeddings(80)
    model.config.use_cache = False
    model.config.pad_token_id = 3
    model.config.output_router_logits = True
    model.config.router_aux_loss_coef = 0.5
    assert model(random_ids()).logits.shape[-1] == 80


# --- random ones ---
BASES = {
    **VARIANTS,
    "latent": dict(attention_type="latent", num_key_value_heads=4, kv_lora_rank=8, qk_rope_head_dim=4),
    "alibi": dict(position_embedding_type="alibi"),
    "relative": dict(position_embedding_type="relative"),
    "scaled": dict(rope_parameters=SCALED),
    "sinks": dict(
        **SPARSE, attention_sink_layer_types=["full_attention"], feed_forward_type="clamped_gated",
        router_type="topk_softmax",
    ),
}  # fmt: skip
NUMBERS = [NAN, INF, -INF, -1, 0, -0.5, 0.5, 1, 2, 7, 10**12, 10**400, True, None, "x", [], {}, [1]]
LISTS = [
    [],
    [None],
    ["banana", "banana"],
    [True],
    [1, 2],
    ["sparse", "dense"],
    ["dense"] * 5,
    "dense",
    {},
    3,
    [[], []],
]
ROPES = [rope for rope, _ in WRONG_ROPES.values()] + [{}, {"full_attention": None}, {1: 2}, 3, None]
# What must be large enough for the ids, and what makes large tensors.
HARNESS = {"vocab_size", "max_position_embeddings", "return_dict", "num_hidden_layers", "position_offset"}
FIELDS = [field for field in fields(MoebaConfig) if field.name not in HARNESS]


def bad_values(field) -> list[Any]:
    args = get_args(field.type) or (field.type,)
    if field.name == "rope_parameters":
        return [*ROPES, *NUMBERS]
    if get_origin(field.type) is Literal:
        return [*args, "x", None, 3, []]
    if any(list in (arg, get_origin(arg)) for arg in args):
        return LISTS
    if str in args:
        return ["x", "silu", "prelu", "rmsnorm", "layernorm", "float16", "int8", "", None, 3, []]
    return [True, False, None, 1, "x", []] if bool in args else NUMBERS


@pytest.mark.filterwarnings("ignore")
@seed(int(os.environ.get("MOEBA_TEST_SEED", "0")))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.data())
def test_a_config_is_refused_or_runs(data):
    """Whatever is said by whatever road: a ValueError, or a model whose outputs and gradients are numbers."""
    base = {**SIZES, **BASES[data.draw(st.sampled_from(sorted(BASES)))]}
    field = data.draw(st.sampled_from(FIELDS))
    said = {field.name: data.draw(st.sampled_from(bad_values(field)))}
    road = data.draw(st.sampled_from(["constructor", "file", "override", "attribute"]))
    try:
        if road == "constructor":
            config = MoebaConfig(**{**base, **said})
        elif road == "attribute":
            config = MoebaConfig(**base)
            setattr(config, field.name, said[field.name])
        else:
            saved = MoebaConfig(**base).to_dict()
            inside, beside = (said, {}) if road == "file" else ({}, said)
            config = MoebaConfig.from_dict({**saved, **inside}, **beside)
        model = MoebaForCausalLM(config)
    except ValueError as error:
        assert str(error)
        return
    ids = random_ids(1, 6)
    output = model(ids, labels=ids)
    assert torch.isfinite(output.logits).all()
    output.loss.backward()

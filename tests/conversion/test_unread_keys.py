"""Keys of a config.json that stock does not read: kept, told once, back at export; or refused for what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import native
import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from moeba import MoebaConfig, MoebaForCausalLM, convert, export, grow
from moeba.conversion import family_of
from moeba.conversion.claims import CLAIMED
from moeba.hub_card.text.engines import registering

KEPT = dict(max_window_layers=48, license="mit", model_name="mine", neftune_noise_alpha=5, use_flash_attn=True,
            _flash_attn_2_enabled=True, is_decoder=True, mup_note=None,
            **{"a.dotted.name": 3})  # fmt: skip


def raw_of(model_type: str, **fields: Any) -> dict[str, Any]:
    return json.loads(native.draw(model_type, 0).to_json_string(use_diff=False)) | fields


def with_fields(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def config_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_kept_told_once_recorded_and_back(tmp_path):
    source = with_fields(native.make(tmp_path / "native", "qwen3_moe"), **KEPT)
    result = convert(source, tmp_path / "moeba")
    told = {name: value for name, value in KEPT.items() if value is not None}
    (note,) = (note for note in result.plan.notes if "not read by" in note)
    assert note.startswith("not read by transformers' Qwen3MoeForCausalLM: ")
    assert all(f"{name}={value!r}" in note for name, value in told.items()) and "mup_note" not in note
    assert note in json.loads((tmp_path / "moeba" / "moeba_provenance.json").read_text())["notes"]
    assert json.loads((tmp_path / "moeba" / "parity.json").read_text())["source"]["not_read"] == told
    export(tmp_path / "moeba", tmp_path / "back", to="qwen3_moe", certificate=False)
    assert KEPT.items() <= config_json(tmp_path / "back").items()


def test_kept_through_surgery_and_saving(tmp_path):
    source = with_fields(
        native.make(tmp_path / "native", "qwen3_moe", num_experts=4, mlp_only_layers=[]), **KEPT
    )
    MoebaForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "moeba")
    grow(tmp_path / "moeba", tmp_path / "grown", times=2, certificate=False)
    MoebaForCausalLM.from_pretrained(tmp_path / "grown").save_pretrained(tmp_path / "trained")
    export(tmp_path / "trained", tmp_path / "back", to="qwen3_moe", certificate=False)
    assert KEPT.items() <= config_json(tmp_path / "back").items()


def test_kept_keys_are_no_attributes_and_belong_to_one_family():
    config = family_of("mistral").take(raw_of("mistral", **KEPT))
    assert not [name for name in KEPT if hasattr(config, name)]
    assert set(config.native_fields) == {"mistral"}
    assert not hasattr(family_of("llama").to_native(_full_attention(config)), "license")


def _full_attention(config: MoebaConfig) -> MoebaConfig:
    config.layer_types, config.sliding_window = ["full_attention"] * config.num_hidden_layers, None
    return config


@pytest.mark.parametrize("name", [name for name, value in KEPT.items() if value is not None])
def test_strict_refuses_each(tmp_path, name):
    raw = raw_of("llama", **{name: KEPT[name]})
    with pytest.raises(ValueError, match=f"LlamaConfig does not know.*strict.*{name}="):
        family_of("llama").take(raw, strict=True)


def test_strict_refuses_before_anything_is_written(tmp_path):
    source = with_fields(native.make(tmp_path / "native", "llama"), license="mit")
    with pytest.raises(ValueError, match="strict.*license='mit'"):
        convert(source, tmp_path / "moeba", strict=True)
    assert not (tmp_path / "moeba").exists()
    assert convert(with_fields(source, license=None), tmp_path / "moeba", strict=True).certificate is not None


@pytest.mark.parametrize("name", sorted(CLAIMED))
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_null_is_no_reason(model_type, name):
    known = set(CONFIG_MAPPING[model_type]().to_dict())
    if name not in known | set(CONFIG_MAPPING[model_type].attribute_map):
        family_of(model_type).take(raw_of(model_type, **{name: None}))


MEANS_MORE = [
    ("llama", dict(scale_emb=12), "embeddings are scaled", dict(scale_emb=1)),
    ("llama", dict(scale_depth=1.4), "residuals are scaled", {}),
    ("llama", dict(dim_model_base=5), "logits are scaled", {}),
    ("llama", dict(logit_scale=0.25), "logits are scaled", dict(logit_scale=1.0)),
    ("llama", dict(embedding_multiplier=12.0), "embeddings are scaled", dict(embedding_multiplier=1.0)),
    ("llama", dict(attn_logit_softcapping=50.0), "scores are capped", dict(attn_logit_softcapping=0)),
    ("llama", dict(final_logit_softcapping=30.0), "logits are capped", {}),
    ("llama", dict(clip_qkv=8.0), "are clamped", {}),
    ("llama", dict(rope_interleaved=True), "neighbouring entries", dict(rope_interleaved=False)),
    ("llama", dict(rotary_dim=4), "so many entries", {}),
    ("llama", dict(use_parallel_residual=True), "blocks in another order", dict(use_parallel_residual=False)),
    ("llama", dict(alibi=True), "fall with the distance", dict(alibi=False)),
    ("llama", dict(use_logn_attn=True), "length of the text", dict(use_logn_attn=False)),
    ("llama", dict(add_cross_attention=True), "an encoder's output", dict(add_cross_attention=False)),
    ("llama", dict(sliding_window=8), "the stock cache forgets", dict(sliding_window=10**6)),
    ("llama", dict(use_sliding_window=True), "see a window", dict(use_sliding_window=False)),
    ("llama", dict(is_causal=False), "sees the whole text", dict(is_causal=True)),
    ("llama", dict(attention_chunk_size=8), "within chunks", {}),
    ("llama", dict(compression_config={"bits": 4}), "quantised", dict(compression_config={})),
    ("gpt2", dict(position_embedding_type="relative_key"), "relative", dict(position_embedding_type="absolute")),
    ("gemma", dict(embed_scale=1.0), "embeddings are scaled", {}),
    ("mixtral", dict(scoring_func="sigmoid"), "weighted otherwise", dict(scoring_func="softmax")),
    ("mixtral", dict(norm_topk_prob=False), "weighted otherwise", dict(norm_topk_prob=True)),
    ("mixtral", dict(routed_scaling_factor=2.5), "weighted otherwise", dict(routed_scaling_factor=1.0)),
    ("mixtral", dict(topk_method="noaux_tc"), "chosen otherwise", dict(topk_method="greedy")),
    ("mixtral", dict(moe_layer_freq=2), "other layers", dict(moe_layer_freq=1)),
    ("mixtral", dict(zero_expert_num=4), "are empty", dict(zero_expert_num=0)),
    ("iquestcoder", dict(per_layer_config={"0": {"intermediate_size": 8}}), "per_layer_config", {}),
]  # fmt: skip


@pytest.mark.parametrize("model_type, fields, meaning, harmless", MEANS_MORE)
def test_what_means_another_function_is_refused_with_its_reason(model_type, fields, meaning, harmless):
    family = family_of(model_type)
    ((name, value),) = fields.items()
    with pytest.raises(ValueError, match=f"mean another function.*{name}=.*{meaning}|{meaning}"):
        family.take(raw_of(model_type, **fields))
    family.take(raw_of(model_type, **harmless))


@pytest.mark.parametrize("model_type, stated", [
    ("deepseek_v3", dict(scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1, num_nextn_predict_layers=0)),
    ("dots1", dict(scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1)),
    ("glm4_moe", dict(scoring_func="sigmoid", topk_method="noaux_tc", num_nextn_predict_layers=0)),
    ("deepseek_v2", dict(scoring_func="softmax", moe_layer_freq=1)),
    ("minimax_m2", dict(scoring_func="sigmoid", use_routing_bias=True, use_qk_norm=True, use_mtp=False)),
    ("gpt_neox", dict(rotary_pct=...)),
    ("glm", dict(rope_ratio=..., layernorm_epsilon=..., seq_length=...)),
    ("phi", dict(partial_rotary_factor=...)),
    ("stablelm", dict(partial_rotary_factor=...)),
    ("nemotron", dict(partial_rotary_factor=...)),
    ("cohere2", dict(rotary_pct=1.0)),
    ("hy_v3", dict(expert_hidden_dim=..., route_norm=True, qk_norm=True, first_k_dense_replace=...)),
    ("gpt2", dict(n_ctx=...)),
    ("mimo_v2_flash", dict(hybrid_layer_pattern=..., moe_layer_freq=..., layernorm_epsilon=...)),
])  # fmt: skip
def test_what_engines_read_is_stated_also_of_a_model_made_here(tmp_path, model_type, stated):
    family = family_of(model_type)
    made_here = MoebaConfig(**family.to_moeba(native.draw(model_type, 1)).to_dict())
    assert made_here.native_fields is None
    said = json.loads(family.to_native(made_here).to_json_string(use_diff=False))
    for name, value in stated.items():
        assert said[name] == value if value is not ... else said[name] is not None, name
    # Reading it back is the same model, and says nothing new.
    assert family.not_read(said) == {}
    family.take(said)


@pytest.mark.parametrize(
    "model_type, name", [("axk1", "first_k_dense_replace"), ("cohere2_moe", "first_k_dense_replace")]
)
def test_old_spelling_of_the_dense_layers_is_stated(model_type, name):
    """Where they come first; engines know no other spelling."""
    family = family_of(model_type)
    for seed in range(4):
        config = family.to_moeba(native.draw(model_type, seed))
        kinds = list(config.mlp_layer_types)
        dense = kinds.count("dense")
        leading = kinds == ["dense"] * dense + ["sparse"] * (len(kinds) - dense)
        said = json.loads(family.to_native(config).to_json_string(use_diff=False))
        assert said.get(name) == (dense if leading else None)


@pytest.mark.parametrize("model_type, name", [("phimoe", "PhiMoEForCausalLM"), ("mpt", "MPTForCausalLM")])
def test_architecture_is_said_as_engines_know_it(model_type, name):
    family = family_of(model_type)
    said = family.to_native(family.to_moeba(native.draw(model_type, 0))).architectures
    assert said == [name] and registering(name)


def test_stated_value_that_contradicts_is_refused():
    for name, value in dict(scoring_func="softmax", topk_method="greedy", moe_layer_freq=2).items():
        with pytest.raises(ValueError, match=f"{name}={value!r} is supported at"):
            family_of("deepseek_v3").take(raw_of("deepseek_v3", **{name: value}))


@pytest.mark.parametrize("model_type, name, value", [
    ("gpt2", "summary_first_dropout", 0.0),
    ("llama", "pretraining_tp", 2),
    ("bloom", "pretraining_tp", 4),
    ("phi3", "original_max_position_embeddings", 16),
    ("qwen2", "max_window_layers", 21),
])  # fmt: skip
def test_fields_without_effect_come_back(model_type, name, value):
    family = family_of(model_type)
    config = family.take(raw_of(model_type, **{name: value}))
    assert getattr(family.to_native(config), name) == value


def test_no_export_claims_layers_beside_the_model():
    for model_type in ("deepseek_v3", "glm4_moe", "mellum"):
        for given in (0, 1):
            config = family_of(model_type).take(raw_of(model_type, num_nextn_predict_layers=given))
            assert family_of(model_type).to_native(config).num_mtp_layers == 0


def test_what_no_longer_holds_is_left_out():
    family = family_of("phi3")
    config = family.take(raw_of("phi3", original_max_position_embeddings=16, license="mit", clip_qkv=None))
    config.rope_parameters = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * (config.head_dim // 2), "long_factor": [2.0] * (config.head_dim // 2),
    }  # fmt: skip
    back = family.to_native(config)
    assert (back.original_max_position_embeddings, back.license) == (32, "mit")


def test_a_key_named_like_a_method_is_left_out():
    config = family_of("llama").take(raw_of("llama"))
    config.native_fields = {"llama": {"to_dict": 1, "license": "mit"}}
    assert family_of("llama").to_native(config).to_dict()["license"] == "mit"


def test_a_key_with_a_dot_comes_back():
    """SmolLM2's files have such a one for transformers.js; MPT's have nested configs."""
    given = {"transformers.js_config": {"dtype": "q4"}, "a.b.c": 1}
    config = family_of("llama").take(raw_of("llama", **given))
    assert given.items() <= family_of("llama").to_native(config).to_dict().items()
    raw = raw_of("mpt", **given)
    raw["attn_config"] |= {"attn_type.note": "x"}
    said = family_of("mpt").to_native(family_of("mpt").take(raw)).to_dict()
    assert given.items() <= said.items() and said["attn_config"]["attn_type.note"] == "x"


def test_kept_fields_that_are_none_are_refused():
    with pytest.raises(
        (ValueError, StrictDataclassError),
        match="native_fields=.* must hold a dict of JSON values for each family",
    ):
        MoebaConfig(native_fields={"llama": 3})

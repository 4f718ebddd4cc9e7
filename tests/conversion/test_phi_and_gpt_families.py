"""Phi, GLM, StableLM and the GPT-NeoX line: published config files, old tensors, refusals, growing past long rope."""

from __future__ import annotations

import copy

import native
import pytest
import torch
from family_case import Case, padded
from native import read_all
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING

from moeba import MoebaConfig, convert
from moeba.conversion import family_of
from moeba.conversion.rows import SplitShards

SIZES = dict(vocab_size=67, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4)
GPT_SIZES = dict(
    vocab_size=67, n_embd=32, n_layer=2, n_head=4, n_positions=48, n_inner=None, gradient_checkpointing=False
)
SUMMARY = dict(
    summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index",
    summary_use_proj=True,
)  # fmt: skip
PUBLISHED = {
    "phi": (
        dict(**SIZES, num_key_value_heads=4, partial_rotary_factor=2 / 3, rope_scaling=None, rope_theta=500.0),
        dict(rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 2 / 3}),
    ),
    "phi3": (
        dict(**SIZES, attention_bias=False, lm_head_bias=False, mlp_bias=False, full_attn_mod=1, interpolate_factor=1,
             sliding_window=7, original_max_position_embeddings=16, rope_theta=500.0, pad_token_id=0,
             rope_scaling={"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}),
        dict(sliding_window=7, longrope_restarts_cache=True, rope_parameters={
            "type": "longrope", "rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 1.0,
            "short_factor": [1.0] * 3, "long_factor": [2.0] * 3,
        }),
    ),
    "starcoder2": (
        dict(**SIZES, activation_function="gelu", attention_softmax_in_fp32=True, layer_norm_epsilon=1e-5,
             mlp_type="default", norm_type="layer_norm", scale_attention_softmax_in_fp32=True,
             scale_attn_weights=True, hidden_act="gelu_pytorch_tanh", norm_epsilon=1e-4),
        dict(hidden_act="gelu_pytorch_tanh", norm_eps=1e-4, mlp_bias=True),
    ),
    "gpt_neox": (
        dict(**SIZES, attention_probs_dropout_prob=0, hidden_dropout_prob=0, rotary_pct=1 / 3, rotary_emb_base=500,
             hidden_act="gelu_fast"),
        dict(block_order="parallel_two_norms", rope_parameters={
            "rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 1 / 3,
        }),
    ),
    "gptj": (
        dict(**GPT_SIZES, **SUMMARY, rotary=True, rotary_dim=4, scale_attn_weights=True),
        dict(intermediate_size=128, rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        }),
    ),
    "codegen": (
        dict(**GPT_SIZES, **SUMMARY, n_ctx=48, rotary_dim=8, scale_attn_weights=True),
        dict(num_attention_heads=4, attention_bias=False, lm_head_bias=True),
    ),
    "gpt_neo": (
        dict(**SUMMARY, vocab_size=67, hidden_size=24, num_layers=2, num_heads=4, window_size=8, intermediate_size=None,
             attention_types=[[["global", "local"], 1]], attention_layers=["global", "local"]),
        dict(layer_types=["full_attention", "sliding_attention"], sliding_window=8, attention_multiplier=1.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_published_config_is_read(model_type):
    raw, meant = PUBLISHED[model_type]
    family = family_of(model_type)
    config = family.to_moeba(family.read_config({**raw, "model_type": model_type}))
    found = {name: getattr(config, name) for name in meant}
    if model_type == "phi3":
        assert found["rope_parameters"].pop("original_max_position_embeddings") == 16
    assert found == meant


OLD_BUFFERS = {
    "gpt_neox": ["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"],
    "gptj": ["attn.bias", "attn.masked_bias"],
    "codegen": ["attn.causal_mask"],
    "gpt_neo": ["attn.attention.bias", "attn.attention.masked_bias"],
}


@pytest.mark.parametrize("model_type", OLD_BUFFERS)
def test_buffers_of_old_checkpoints_are_dropped(tmp_path, model_type):
    source = native.make(tmp_path / "native", model_type)
    layer = family_of(model_type).layer_prefix.replace("{layer}", "0")
    old = {f"{layer}.{name}": torch.ones(1, 1, 4, 4) for name in OLD_BUFFERS[model_type]}
    for file in source.glob("model*"):
        if file.suffix != ".safetensors":
            file.unlink()
    tensors = read_all(source) if not list(source.glob("*.index.json")) else {}
    save_file({**tensors, **old}, source / "model.safetensors", {"format": "pt"})
    convert(source, tmp_path / "moeba", certificate=False)
    assert not [name for name in read_all(tmp_path / "moeba") if "mask" in name or "inv_freq" in name]


@pytest.mark.parametrize(
    "model_type, fields, told",
    [
        ("codegen", dict(n_head=2, n_embd=16, rotary_dim=4), "n_head=2 is no multiple of 4"),
        ("gptj", dict(n_head=2, n_embd=16, rotary_dim=5), "no even width"),
        (
            "gpt_neo",
            dict(window_size=1, num_layers=2, attention_types=[[["global", "local"], 1]]),
            "window_size=1 is",
        ),
        (
            "gpt_neox",
            dict(rope_parameters={"partial_rotary_factor": 0.3}, hidden_size=40, num_attention_heads=4),
            "no even width",
        ),
        (
            "starcoder2",
            dict(rope_parameters={"partial_rotary_factor": 0.5}),
            "partial_rotary_factor=0.5 is supported",
        ),
    ],
)
def test_refused_by_name(model_type, fields, told):
    values = {**native.plain(native.draw(model_type, 0)), **fields}
    with pytest.raises(ValueError, match=told):
        family_of(model_type).to_moeba(CONFIG_MAPPING[model_type](**values))


@pytest.mark.parametrize(
    "target, fields, told",
    [
        ("codegen", dict(num_attention_heads=2, num_key_value_heads=2), "n_head=2 is no multiple of 4"),
        ("gptj", dict(num_key_value_heads=2), r"num_key_value_heads=2 \(there: 4\)"),
        (
            "gptj",
            dict(rope_parameters={"rope_theta": 500.0, "partial_rotary_factor": 0.5}),
            "rope_theta.*500",
        ),
        ("stablelm", dict(attention_output_bias=True), r"attention_output_bias=True \(there: False\)"),
        ("gpt_neox", dict(attention_output_bias=False), "attention_output_bias=False"),
        ("phi3", dict(rope_parameters={"rope_type": "yarn", "factor": 4.0}), "rope_type.*longrope"),
        (
            "gptj",
            dict(position_embedding_type="learned", rope_parameters=None),
            "position_embedding_type='learned'",
        ),
    ],
)
def test_what_a_family_cannot_hold_is_named(target, fields, told):
    shape = family_of(target).to_moeba(native.draw(target, 0)).to_dict()
    shape |= SIZES | {
        "hidden_size": 32,
        "head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
    }
    shape |= dict(
        layer_types=None, mlp_layer_types=None, rotary_layers=None, sliding_window=None, embedding_size=None
    )
    config = MoebaConfig.from_dict({**shape, **fields})
    with pytest.raises(ValueError, match=told):
        family_of(target).to_native(config)


@pytest.mark.parametrize(
    "rotated, width", [(width - width % 2, width) for width in range(3, 200, 7)] + [(30, 49)]
)
def test_rotated_width_survives_as_a_fraction(rotated, width):
    fields = dict(n_embd=2 * width, n_head=2, rotary_dim=rotated, n_layer=1)
    family = family_of("gptj")
    ours = family.to_moeba(CONFIG_MAPPING["gptj"](**fields))
    assert family.to_native(ours).rotary_dim == rotated


def test_shards():
    """Rows of a shard: its share of each part, one part after the other."""
    fused = torch.arange(12).reshape(12, 1)
    cut = SplitShards(shards=2, parts=3)
    parts = cut.to_ours([fused], MoebaConfig())
    assert [part.flatten().tolist() for part in parts] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert torch.equal(cut.to_theirs(parts, MoebaConfig())[0], fused)


def test_growing_past_the_original_context_starts_the_cache_anew(tmp_path):
    """Phi-3's generate() recomputes keys that the short factors turned; going on with them writes other tokens."""
    others = 0
    for seed in (13, 20, 27):
        config = native.draw("phi3", seed)
        factors = {"short_factor": [1.0] * 2, "long_factor": [3.0] * 2}
        rope = {"rope_type": "longrope", "rope_theta": 500.0, "factor": 4.0, **factors}
        values = {**native.plain(config), "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
                  "rope_parameters": rope, "original_max_position_embeddings": 16, "sliding_window": None}  # fmt: skip
        values.pop("head_dim", None)
        case = Case(CONFIG_MAPPING["phi3"](**values), tmp_path / str(seed), seed)
        ids, mask = (tensor[:2, :13] for tensor in padded(case))
        settings = dict(max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=None)
        expected = case.theirs.generate(ids, attention_mask=mask, **settings)
        assert torch.equal(case.ours.generate(ids, attention_mask=mask, **settings), expected)
        stale = copy.deepcopy(case.ours)
        stale.config.longrope_restarts_cache = False
        others += not torch.equal(stale.generate(ids, attention_mask=mask, **settings), expected)
    assert others

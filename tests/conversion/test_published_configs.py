"""Config files as they lie on the Hub: spellings of old releases, and keys that no stock code reads."""

from __future__ import annotations

import json
from pathlib import Path

import native
import pytest
import transformers

from moeba import convert
from moeba.conversion import family_of

SIZES = dict(
    vocab_size=67, hidden_size=24, intermediate_size=20, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, torch_dtype="bfloat16", transformers_version="4.40.0", use_cache=True,
)  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}

# By model type: what its config.json holds, and what that means in Moeba's words.
PUBLISHED = {
    "gemma": (
        dict(head_dim=8, hidden_act="gelu", hidden_activation="gelu_pytorch_tanh", rope_theta=500.0),
        dict(hidden_act="gelu_pytorch_tanh", embedding_multiplier=24**0.5, tie_word_embeddings=True),
    ),
    "gemma2": (
        dict(head_dim=8, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", sliding_window=8,
             sliding_window_size=4096, cache_implementation="hybrid", query_pre_attn_scalar=144),
        dict(layer_types=[SLIDING, FULL, SLIDING, FULL], attention_multiplier=1 / 12, attn_logit_softcapping=50.0),
    ),
    "gemma3_text": (
        dict(head_dim=8, sliding_window_pattern=3, rope_local_base_freq=100.0, rope_theta=2e5, rope_scaling=None,
             sliding_window=8, cache_implementation="hybrid", _sliding_window_pattern=3),
        dict(layer_types=[SLIDING, SLIDING, FULL, SLIDING], rope_parameters={
            FULL: {"rope_type": "default", "rope_theta": 2e5}, SLIDING: {"rope_type": "default", "rope_theta": 100.0},
        }),
    ),
    "olmo3": (
        dict(sliding_window=8, rope_theta=500000, rope_scaling=YARN),
        dict(layer_types=[SLIDING] * 3 + [FULL], rope_parameters={
            FULL: {"rope_theta": 500000, **YARN}, SLIDING: {"rope_type": "default", "rope_theta": 500000.0},
        }),
    ),
    "cohere": (
        dict(model_max_length=131072, pretraining_tp=1, logit_scale=0.25, rope_theta=8e6),
        dict(logit_scale=0.25, qk_norm="none", rope_parameters={"rope_type": "default", "rope_theta": 8e6}),
    ),
    "cohere2": (
        dict(head_dim=6, layer_switch=2, order_of_interleaved_layers="local_attn_first", rotary_pct=1.0,
             position_embedding_type="rope_gptj", sliding_window=8, sliding_window_pattern=2, rope_scaling=None,
             use_embedding_sharing=True, use_gated_activation=True, use_parallel_block=True,
             use_parallel_embedding=True, cache_implementation="hybrid", rope_theta=50000),
        dict(layer_types=[SLIDING, FULL, SLIDING, FULL], rotary_layers=[True, False, True, False]),
    ),
    "nemotron": (
        dict(head_dim=8, norm_eps=1e-4, rope_theta=500.0),
        dict(norm_eps=1e-4, rope_parameters={
            "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5,
        }),
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_published_config_is_read(model_type):
    raw, meant = PUBLISHED[model_type]
    family = family_of(model_type)
    config = family.to_moeba(family.read_config({**SIZES, **raw, "model_type": model_type}))
    assert {name: getattr(config, name) for name in meant} == meant


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_bidirectional_gemma_is_refused(model_type):
    family = family_of(model_type)
    native = family.read_config({**SIZES, "model_type": model_type, "use_bidirectional_attention": True})
    with pytest.raises(ValueError, match="use_bidirectional_attention=True is not supported: "):
        family.to_moeba(native)


@pytest.mark.parametrize("model_type", ["gemma3_text", "olmo3"])
def test_part_of_a_head_for_one_kind_of_layer_is_refused(model_type):
    rope = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in (FULL, SLIDING)}
    rope[SLIDING]["partial_rotary_factor"] = 0.5
    family = family_of(model_type)
    native = family.read_config({**SIZES, "model_type": model_type, "rope_parameters": rope})
    with pytest.raises(ValueError, match=r"partial_rotary_factor=0\.5 is supported at 1\.0 only"):
        family.to_moeba(native)


def with_fields(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def test_config_of_a_later_transformers_is_read(tmp_path):
    """What the installed stock model does not read is told once, with both versions, and kept in the record."""
    source = with_fields(
        native.make(tmp_path / "native", "llama"), transformers_version="98.7.0", gate_beta=0.5
    )
    result = convert(source, tmp_path / "moeba")
    (note,) = result.plan.notes
    assert "written by transformers 98.7.0" in note and "gate_beta=0.5" in note
    assert f"the installed {transformers.__version__} does not read" in note
    assert note in json.loads((result.folder / "moeba_provenance.json").read_text())["notes"]
    assert result.certificate.verdict == "verified"

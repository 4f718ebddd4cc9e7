"""What Llama's relatives ask for beyond their draws: values that are refused, and translations worth a look."""

from __future__ import annotations

import native
import pytest
import torch
from support import random_ids, tiny_model
from transformers import CONFIG_MAPPING

from moeba.conversion import family_of
from moeba.conversion.rows import NegateSecondHalves

LAYERS = dict(num_hidden_layers=3, layer_types=["full_attention", "sliding_attention", "sliding_attention"])


def translated(model_type: str, **fields):
    """A drawn config with some fields set, in Moeba's words."""
    config = native.draw(model_type, 0)
    values = {**native.plain(config), "sliding_window": 4, **fields}
    return family_of(model_type).to_moeba(CONFIG_MAPPING[model_type](**values))


@pytest.mark.parametrize(
    "model_type, fields, told",
    [
        ("granite_swa", dict(**LAYERS, layer_rope_theta=[1e4, 500.0, 1e4]), "layer_rope_theta=.*one theta for each"),
        ("smollm3", dict(**LAYERS, no_rope_layers=None, use_sliding_window=False), "use_sliding_window=False while"),
        ("helium", dict(head_dim=6), "head_dim=6 gives heads of .* the stock model is square"),
        ("ministral3", dict(rope_parameters={"rope_type": "default"}), "lacks llama_4_scaling_beta or original"),
        ("hyperclovax", dict(use_post_norm=True, residual_multiplier=0.5), "residual_multiplier=0.5 .*use_post_norm"),
        ("mistral", dict(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor=0.5 is supported"),
    ],
)  # fmt: skip
def test_refused_by_name(model_type, fields, told):
    with pytest.raises(ValueError, match=told):
        translated(model_type, **fields)


def test_thetas_of_layers():
    """Layers that do not rotate have theta 0; kinds of layers with different thetas have a rope each."""
    still = translated("granite_swa", **LAYERS, layer_rope_theta=[0, 500.0, 500.0])
    assert still.rotary_layers == [False, True, True] and still.rope_parameters["rope_theta"] == 500.0
    two = translated("granite_swa", **LAYERS, layer_rope_theta=[1e6, 0, 500.0])
    assert two.rotary_layers == [True, False, True]
    assert {kind: rope["rope_theta"] for kind, rope in two.rope_parameters.items()} == {
        "full_attention": 1e6,
        "sliding_attention": 500.0,
    }
    assert family_of("granite_swa").to_native(two).layer_rope_theta == [1e6, 0, 500.0]


def test_fixed_stretch_of_a_rope_that_calls_itself_dynamic():
    rope = {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0, "rope_theta": 10000.0}
    config = translated("hunyuan_v1_dense", head_dim=8, rope_parameters=rope)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0 * 1000.0 ** (8 / 6)}


def test_a_growth_of_zero_is_none():
    rope = {"rope_type": "default", "rope_theta": 1e4, "original_max_position_embeddings": 16}
    config = translated("ministral3", rope_parameters={**rope, "llama_4_scaling_beta": 0.0})
    assert (
        config.query_growth_beta is None and "original_max_position_embeddings" not in config.rope_parameters
    )
    assert family_of("ministral3").to_native(config).rope_parameters["llama_4_scaling_beta"] == 0.0


def test_window_of_no_layer_stops_the_rotation():
    fields = dict(num_hidden_layers=2, layer_types=["full_attention"] * 2)
    assert translated("exaone4", **fields).rotary_layers == [False, False]
    assert translated("exaone4", **fields, sliding_window=None).rotary_layers == [True, True]


def test_second_halves_change_their_sign():
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = translated("nanochat", head_dim=4, num_attention_heads=4, rope_parameters=rope)
    weight = torch.randn(16, 5)
    (ours,) = NegateSecondHalves().to_ours([weight], config)
    sign = torch.tensor([1, 1, -1, -1] * 4)[:, None]
    assert torch.equal(ours, weight * sign)
    assert torch.equal(NegateSecondHalves().to_theirs([ours], config)[0], weight)


def test_both_forms_of_sinks_are_one_function():
    """They differ in rounding only."""
    entry, share = (
        tiny_model(attention_sink_layer_types=["full_attention"], attention_sink_form=form)
        for form in ("softmax_entry", "output_share")
    )
    share.load_state_dict(entry.state_dict())
    with torch.no_grad():
        a, b = (model(random_ids()).logits for model in (entry, share))
    assert 0 < (a - b).abs().max() < 1e-5 * (a.max() - a.min())

"""GPT-OSS, AFMoE, Hunyuan 3, Laguna, Flint and MiMo: what their folders carry beside the model, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from native import draw, make, plain, read_all
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from moeba import MoebaForCausalLM, convert
from moeba.conversion import family_of


@pytest.mark.parametrize(
    "model_type, name",
    [("hy_v3", "model.layers.80.eh_proj.weight"), ("mimo_v2_flash", "model.mtp.layers.0.a.weight")],
)
def test_tensors_that_predict_further_tokens_are_dropped(model_type, name, tmp_path):
    """As the stock model leaves them out when it loads."""
    source = make(tmp_path / "native", model_type)
    save_file(read_all(source) | {name: torch.ones(3)}, source / "model.safetensors", {"format": "pt"})
    _, info = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True)
    assert not info["unexpected_keys"]
    result = convert(source, tmp_path / "moeba")
    assert list(result.plan.dropped) == [name] and "further tokens" in result.plan.dropped[name]
    assert result.certificate.verdict == "verified"


def test_quantised_checkpoint_is_refused(tmp_path):
    source = make(tmp_path / "native", "gpt_oss")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}})
    )
    with pytest.raises(
        ValueError, match=r"is quantised \(quant_method='mxfp4'\): convert the unquantised one"
    ):
        convert(source, tmp_path / "moeba")


PUBLISHED = {
    "gpt_oss": {"initial_context_length": 4096},
    "afmoe": {"score_func": "sigmoid", "route_norm": True, "n_group": 1, "load_balance_coeff": 1e-3},
    "mimo_v2_flash": {"sliding_window_size": 8},
}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_keys_of_published_configs(model_type):
    family = family_of(model_type)
    raw = draw(model_type, 0).to_dict() | PUBLISHED[model_type]
    config = family.to_moeba(family.read_config(raw))
    if model_type == "mimo_v2_flash" and "sliding_attention" in config.layer_types:
        assert config.sliding_window == 9


@pytest.mark.parametrize("change", [{"score_func": "softmax"}, {"route_norm": False}, {"n_group": 2}])
def test_other_router_of_an_old_config_is_refused(change):
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r} is supported at .* only, which the stock model"):
        family_of("afmoe").take(draw("afmoe", 0).to_dict() | change)


REFUSED = [
    ("afmoe", {"num_shared_experts": 0, "num_dense_layers": 0}, "num_shared_experts=0"),
    ("hy_v3", {"num_shared_experts": 0, "mlp_layer_types": None}, "num_shared_experts=0"),
    ("flint", {"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size=0"),
    ("laguna", {"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size=0"),
    ("laguna", {"rope_parameters": {"full_attention": None, "sliding_attention": None}}, "has nothing for"),
    (
        "mimo_v2_flash",
        {"head_dim": 16, "rope_parameters": None},
        "partial_rotary_factor=0.334 of head_dim=16",
    ),
    ("gpt_oss", {"sliding_window": None, "layer_types": ["sliding_attention"] * 3}, "sliding_window=None"),
]


@pytest.mark.parametrize("model_type, change, told", REFUSED)
def test_refused(model_type, change, told):
    fields = plain(draw(model_type, 0)) | {"num_hidden_layers": 3} | change
    for name in ("layer_types", "mlp_layer_types", "num_attention_heads_per_layer"):
        if name not in change and name in fields:
            fields[name] = None
    with pytest.raises(ValueError, match=told):
        family_of(model_type).to_moeba(CONFIG_MAPPING[model_type](**fields))


def test_float32_parts_stay_in_float32(tmp_path):
    """Flint's router and sinks."""
    source = make(tmp_path / "native", "flint", mlp_only_layers=[], decoder_sparse_step=1)
    models = [
        kind.from_pretrained(source, dtype=torch.bfloat16)
        for kind in (AutoModelForCausalLM, MoebaForCausalLM)
    ]
    for model in models:
        wide = {name for name, value in model.named_parameters() if value.dtype == torch.float32}
        assert {name.split(".", 3)[3] for name in wide} == {"self_attn.sinks", "mlp.gate.weight"}

"""What quantisers and tensor parallelism leave as it was is said when a model is loaded."""

from __future__ import annotations

import pytest
import torch
from support import SPARSE, random_ids, tiny_config, tiny_model

from moeba import MoebaForCausalLM
from moeba.configuration.parallel_plans import tensor_parallel_plan, whole_under_tensor_parallelism
from moeba.modeling import left_whole


@pytest.fixture
def said(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(left_whole.logger, "warning_once", lines.append)
    return lines


@pytest.mark.parametrize(
    ("variant", "changes", "words"),
    [
        ("dense", {}, None),
        ("moe", {}, None),
        ("dense", dict(attention_sink_layer_types=["full_attention"]), ["attention_sink_layer_types"]),
        ("learned_mlp", dict(position_embedding_type="alibi"), ["position_embedding_type='alibi'"]),
        (
            "dense",
            dict(
                attention_type="latent",
                num_key_value_heads=4,
                kv_lora_rank=16,
                qk_rope_head_dim=4,
                q_lora_rank=12,
            ),
            ["attention_type='latent'"],
        ),
        ("moe", dict(expert_bias=True), ["expert_bias=True", "ep_size"]),
    ],
)
def test_tensor_parallelism_says_what_it_does_not_divide(variant, changes, words, monkeypatch, said):
    config = tiny_config(variant, **changes)
    whole, plan = whole_under_tensor_parallelism(config), tensor_parallel_plan(config)
    assert (whole is None) == (words is None) and all(word in whole for word in words or ())
    assert any("self_attn" in name for name in plan) != ("attention" in (whole or ""))
    if config.sparse_layers:
        assert any("mlp.experts." in name for name in plan) != ("experts" in (whole or ""))
    model = MoebaForCausalLM(config)
    left_whole.say_what_stays_whole(model)
    assert not said, "one device holds all"
    monkeypatch.setattr(MoebaForCausalLM, "tp_size", 2)
    left_whole.say_what_stays_whole(model)
    assert len(said) == bool(words)


def test_the_share_of_experts_in_float_is_said(said):
    model = tiny_model("moe", mlp_layer_types=["sparse", "sparse"])
    assert left_whole.unquantised_share(model) == 0
    model.hf_quantizer = object()
    experts = sum(layer.mlp.experts.gate_up_proj.numel() * 1.5 for layer in model.model.layers)
    share = left_whole.unquantised_share(model)
    assert share == pytest.approx(experts / model.config.num_params())
    left_whole.say_what_stays_whole(model)
    assert len(said) == 1 and f"{share:.0%}" in said[0] and "float32" in said[0]
    dense = tiny_model("dense")
    dense.hf_quantizer = object()
    assert left_whole.unquantised_share(dense) == 0


@pytest.mark.slow
def test_with_a_quantiser(tmp_path, said):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    for variant, changes in (("dense", {}), ("dense", SPARSE)):
        tiny_model(variant, **changes).save_pretrained(tmp_path)
        settings = TorchAoConfig(quantization.Int8WeightOnlyConfig())
        model = MoebaForCausalLM.from_pretrained(tmp_path, quantization_config=settings)
        assert type(model.model.layers[0].self_attn.q_proj.weight) is not torch.nn.Parameter
        assert len(said) == bool(changes)
    int8 = quantization.Int8WeightOnlyConfig()
    by_name = quantization.FqnToConfig({"_default": int8, left_whole.EXPERTS_BY_NAME: int8})
    model = MoebaForCausalLM.from_pretrained(tmp_path, quantization_config=TorchAoConfig(by_name))
    assert left_whole.unquantised_share(model) == 0 and len(said) == 1
    assert model(random_ids()).logits.isfinite().all()

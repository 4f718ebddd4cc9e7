"""DeepSeek and the families that follow it: what their checkpoints carry beside the model, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from native import draw, make, read_all
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.mistral4.modeling_mistral4 import Mistral4TopkRouter

from moeba import MoebaConfig, MoebaForCausalLM, convert
from moeba.conversion import family_of
from moeba.conversion.certificate.twin import shrink
from moeba.conversion.checkpoint import Checkpoint
from moeba.modeling.router import ROUTERS

LAST, MORE = "model.layers.1.", "model.layers.2."
SPARSE = {
    "first_k_dense_replace": dict(num_hidden_layers=2, first_k_dense_replace=1),
    "mlp_layer_types": dict(num_hidden_layers=2, mlp_layer_types=["dense", "sparse"]),
}


def checkpoint(folder, model_type, layers="first_k_dense_replace"):
    """Two layers, of which the second is sparse."""
    fields = SPARSE[layers] | {"tie_word_embeddings": False}
    return make(folder / "native", model_type, **fields)


def rewrite(folder, change):
    """Replace a checkpoint's tensors by what `change` makes of them."""
    save_file(change(read_all(folder)), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "model_type, layers",
    [
        ("deepseek_v3", "first_k_dense_replace"),
        ("glm4_moe", "first_k_dense_replace"),
        ("glm4_moe_lite", "mlp_layer_types"),
    ],
)
def test_layers_past_the_last_are_dropped(tmp_path, model_type, layers):
    source = checkpoint(tmp_path, model_type, layers)
    before = read_all(source)
    more = {name.replace(LAST, MORE): value + 1 for name, value in before.items() if name.startswith(LAST)}
    more |= {f"{MORE}eh_proj.weight": torch.ones(3, 6), f"{MORE}shared_head.head.weight": torch.ones(9, 3)}
    rewrite(source, lambda tensors: tensors | more)
    result = convert(source, tmp_path / "moeba")
    assert set(result.plan.dropped) == set(more)
    assert all("predicts further tokens" in reason for reason in result.plan.dropped.values())
    assert result.certificate.verdict == "verified"


def test_predicting_layers_outside_the_model_are_dropped(tmp_path):
    source = checkpoint(tmp_path, "exaone_moe", "mlp_layer_types")
    more = {"mtp.layers.0.mlp.gate.weight": torch.ones(2), "mtp.fc.weight": torch.ones(2)}
    rewrite(source, lambda tensors: tensors | more)
    result = convert(source, tmp_path / "moeba")
    assert set(result.plan.dropped) == set(more) and result.certificate.verdict == "verified"


def test_stray_tensor_of_a_layer_of_the_model_is_refused(tmp_path):
    source = checkpoint(tmp_path, "deepseek_v3")
    rewrite(source, lambda tensors: tensors | {f"{LAST}eh_proj.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=rf"unexpected {LAST}eh_proj\.weight"):
        convert(source, tmp_path / "moeba")


def test_released_axk1_has_no_bias_and_a_norm_too_many(tmp_path):
    source = checkpoint(tmp_path, "axk1", "mlp_layer_types")
    bias, norm = f"{LAST}mlp.gate.e_score_correction_bias", "model.layers.0.post_mlp_layernorm.weight"

    def as_released(tensors):
        return {name: value for name, value in tensors.items() if name != bias} | {norm: torch.ones(3)}

    rewrite(source, as_released)
    result = convert(source, tmp_path / "moeba")
    assert set(result.plan.dropped) == {norm} and bias in result.plan.notes[0]
    assert result.certificate.verdict == "verified"
    router = MoebaForCausalLM.from_pretrained(tmp_path / "moeba").model.layers[1].mlp.gate
    assert not router.e_score_correction_bias.any()


def test_missing_bias_of_another_family_is_refused(tmp_path):
    source = checkpoint(tmp_path, "deepseek_v3")
    bias = f"{LAST}mlp.gate.e_score_correction_bias"
    rewrite(source, lambda tensors: {name: value for name, value in tensors.items() if name != bias})
    with pytest.raises(ValueError, match=rf"missing {bias}"):
        convert(source, tmp_path / "moeba")


@pytest.mark.parametrize(
    "model_type, raw",
    [
        (
            "deepseek_v3",
            {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "ep_size": 1},
        ),
        (
            "deepseek_v2",
            {"scoring_func": "softmax", "moe_layer_freq": 1, "aux_loss_alpha": 0.001, "seq_aux": True},
        ),
        (
            "glm4_moe_lite",
            {
                "mlp_layer_types": None,
                "first_k_dense_replace": 1,
                "topk_method": "noaux_tc",
                "num_nextn_predict_layers": 1,
            },
        ),
    ],
)
def test_authors_config_is_read(tmp_path, model_type, raw):
    source = make(tmp_path / "native", model_type)
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | raw))
    family = family_of(model_type)
    family.take(Checkpoint(source).config)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"moe_layer_freq": 2}))
    with pytest.raises(ValueError, match="moe_layer_freq=2"):
        family.take(Checkpoint(source).config)


@pytest.mark.parametrize(
    "model_type, change, told",
    [
        (
            "deepseek_v2",
            {"topk_method": "noaux_tc"},
            r"topk_method='noaux_tc' .*: the stock router cannot choose",
        ),
        ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": None}, r"'n_group': None"),
        ("deepseek_v3", {"n_group": None}, "n_group=None, topk_group=.*: the stock router needs both"),
        (
            "deepseek_v3",
            {"n_shared_experts": 0, "first_k_dense_replace": 0},
            "n_shared_experts=0: the stock model has",
        ),
        ("deepseek_v3", {"head_dim": 6}, "head_dim=6 is supported at qk_rope_head_dim="),
        (
            "deepseek_v3",
            {"num_attention_heads": 4, "num_key_value_heads": 2},
            "one key/value head a query head",
        ),
        ("deepseek_v3", {"n_routed_experts": 4, "n_group": 4}, "scores a group by its best two experts"),
        (
            "deepseek_v3",
            dict(
                n_routed_experts=12, n_group=4, topk_group=1, num_experts_per_tok=4, first_k_dense_replace=0
            ),
            "fewer than num_experts_per_tok=4",
        ),
        (
            "deepseek_v3",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "whole heads",
        ),
        (
            "mistral4",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.7}},
            "lacks llama_4_scaling_beta",
        ),
        (
            "mistral4",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.1}},
            "turns . entries of a head, and qk_rope_head_dim=.: the stock model fails",
        ),
        ("solar_open", {"n_shared_experts": 0}, "n_shared_experts=0"),
        ("youtu", {"pad_token_id": 3}, "pad_token_id=3 is supported at None only"),
    ],
)
def test_refused(model_type, change, told):
    config = draw(model_type, 1)
    for name, value in change.items():
        object.__setattr__(config, config.attribute_map.get(name, name), value)
    with pytest.raises(ValueError, match=told):
        family_of(model_type).to_moeba(config)


@pytest.mark.parametrize(
    "stock_router, model_type", [(Mistral4TopkRouter, "mistral4"), (DeepseekV2TopkRouter, "deepseek_v2")]
)
def test_scores_that_underflow_compete_with_closed_groups(stock_router, model_type):
    """Open experts whose softmax is 0 tie with those of closed groups, which Mistral 4 then weighs by their score."""
    fields = dict(
        n_routed_experts=12, n_group=2, topk_group=1, num_experts_per_tok=4, first_k_dense_replace=0
    )
    if model_type == "deepseek_v2":
        fields["topk_method"] = "group_limited_greedy"
    values = {**draw(model_type, 3).to_dict(), **fields}
    native = CONFIG_MAPPING[model_type].from_dict(values)
    ours = ROUTERS["topk"](family_of(model_type).to_moeba(native))
    theirs = stock_router(native)
    logits = torch.full((8, 12), -200.0)
    logits[:, :2], logits[:, 6:9] = 1.0, torch.randn(8, 3)
    tokens = torch.randn(8, native.hidden_size).double()
    weight = torch.linalg.lstsq(tokens, logits.double()).solution.T.float()
    for router in (ours, theirs):
        router.weight.data.copy_(weight)
    with torch.no_grad():
        answers = [router(tokens.float()) for router in (ours, theirs)]
    assert (answers[1][0].softmax(-1) == 0).any(), "no score underflows"
    shares = [torch.zeros(8, 12).scatter_(1, indices, weights) for _, weights, indices in answers]
    assert torch.equal(*shares)
    closed_wins = (shares[1][:, :6].any(-1) & shares[1][:, 6:].any(-1)).any()
    assert closed_wins == (model_type == "mistral4")


@pytest.mark.parametrize("depth, base", [(1.4, 256), (None, None), (0.7, 200)])
def test_scales_that_follow_from_sizes_follow_in_the_twin_too(depth, base):
    """MiniCPM3-4B's widths: a logit divisor of 2560 / 256 has no base of its own in a stream of 32 channels."""
    family = family_of("minicpm3")
    native = CONFIG_MAPPING["minicpm3"](scale_depth=depth, dim_model_base=base)
    config = family.to_moeba(native)
    back = family.to_native(config)
    assert (back.scale_depth, back.dim_model_base) == (native.scale_depth, native.dim_model_base)
    small = family.rederived(shrink(config))
    assert family.to_moeba(family.to_native(small)).logit_scale == small.logit_scale
    assert 0.5 < small.logit_scale / config.logit_scale < 2


def test_parts_are_not_rederived():
    family = family_of("minicpm3")
    config = family.to_moeba(draw("minicpm3", 0))
    with pytest.raises(ValueError, match="'minicpm3' cannot hold this model: .*norm_type='layernorm'"):
        family.rederived(MoebaConfig.from_dict({**config.to_dict(), "norm_type": "layernorm"}))

"""Mixtures of experts: training with random draws, published config files, and what is refused by name."""

from __future__ import annotations

import native
import pytest
import torch
import torch.nn.functional as F
from family_case import Case
from parity import assert_close
from transformers import PreTrainedModel

from moeba import MoebaConfig
from moeba.conversion import family_of

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0], "factor": 2.0,
            "original_max_position_embeddings": 16, "short_mscale": 1.25, "long_mscale": 1.25}  # fmt: skip
SMALL = dict(hidden_size=8, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=3)
FULL, SLIDING = "full_attention", "sliding_attention"


def train_once(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a training pass, which leaves gradients behind."""
    model.set_attn_implementation("eager")
    model.train()
    torch.manual_seed(5)
    logits = model(ids, use_cache=False).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    return logits.detach()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("model_type", ["phimoe", "mixtral", "minimax_m2"])
def test_same_training_step(model_type, seed, tmp_path):
    """Noise and sampled experts from one random state: the stock logits, and gradients of the routers."""
    case = Case.drawn(model_type, seed, tmp_path)
    ours, theirs = (train_once(model, case.ids()) for model in (case.ours, case.theirs))
    assert torch.equal(ours, theirs)
    routers = [
        {name.split(".")[2]: parameter.grad for name, parameter in model.named_parameters()
         if name.endswith(("mlp.gate.weight", "mlp.router.weight"))}
        for model in (case.ours, case.theirs)
    ]  # fmt: skip
    assert routers[0] and routers[0].keys() == routers[1].keys()
    for layer, gradient in routers[0].items():
        assert_close(
            gradient, routers[1][layer], exact=False, what=f"gradient of the router of layer {layer}"
        )


@pytest.mark.parametrize("model_type, published, expected", [
    ("phimoe", dict(rope_scaling=LONGROPE, rope_theta=500.0, input_jitter_noise=0.01, **SMALL),
     dict(longrope_factors="short", sparsemixer_eps=0.01, router_jitter_noise=0.01, rope_parameters={
         "rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0],
         "factor": 2.0, "original_max_position_embeddings": 16, "attention_factor": 1.25})),
    ("hunyuan_v1_moe",
     dict(head_dim=8, num_experts=4, moe_topk=[2, 2, 1], num_shared_expert=[1, 1, 1], use_qk_norm=True, use_mla=False,
          moe_intermediate_size=[16] * 3, intermediate_size=16,
          rope_scaling={"type": "dynamic", "alpha": 2.0, "factor": 1.0}, rope_theta=100.0, **SMALL),
     dict(shared_expert_intermediate_size=16, rope_parameters={
         "rope_type": "default", "rope_theta": 100.0 * 2.0 ** (8 / 6)})),
    ("cohere2_moe",
     dict(head_dim=4, first_k_dense_replace=1, use_qk_norm=False, rms_norm_eps=1e-3, num_shared_experts=2,
          intermediate_size=12, expert_selection_fn="sigmoid", **SMALL),
     dict(mlp_layer_types=["dense", "sparse", "sparse"], layer_types=[FULL, SLIDING, SLIDING],
          rotary_layers=[True] * 3, norm_type="rmsnorm", norm_eps=1e-3, shared_expert_intermediate_size=24,
          router_type="topk_sigmoid")),
    ("ernie4_5_moe",
     dict(moe_capacity=[64, 64, 64], moe_gate="topk", moe_use_aux_free=True, num_nextn_predict_layers=1,
          moe_num_experts=4, moe_k=2, **SMALL),
     dict(mlp_layer_types=["dense", "sparse", "sparse"], num_experts=4, router_selection_bias=True)),
    ("minimax_m2",
     dict(head_dim=8, rotary_dim=4, rope_theta=500.0, scoring_func="sigmoid", use_qk_norm=True, use_mtp=True,
          qk_norm_type="per_layer", use_routing_bias=True, shared_intermediate_size=0, attn_type_list=[1] * 3, **SMALL),
     dict(rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5})),
])  # fmt: skip
def test_published_config_is_read(model_type, published, expected):
    family = family_of(model_type)
    ours = family.to_moeba(family.read_config({"model_type": model_type, **published}))
    assert {name: getattr(ours, name) for name in expected} == expected


def thetas(*listed: float) -> dict:
    return dict(layer_types=[FULL, SLIDING, SLIDING], layer_rope_theta=list(listed), **SMALL)


@pytest.mark.parametrize("model_type, fields, told", [
    ("phimoe", dict(rope_parameters={**LONGROPE, "long_mscale": 1.5}, **SMALL), "long_mscale=1.5 differ"),
    ("phimoe", dict(rope_parameters={"rope_type": "linear", "factor": 2.0, "short_mscale": 1.0, "long_mscale": 1.0}),
     "rope_type='linear' is supported as 'default' and 'longrope' only"),
    ("granitemoe_swa", thetas(100.0, 200.0, 300.0), r"layer_rope_theta=\[100.0, 200.0, 300.0\]"),
    ("qwen2_moe", dict(shared_expert_intermediate_size=0), "a shared expert without neurons"),
    ("qwen2_moe", dict(num_hidden_layers=1, layer_types=[SLIDING]), "but sliding_window is off"),
    ("hunyuan_v1_moe", dict(head_dim=8, moe_topk=[1], **SMALL), r"moe_topk=\[1\] has 1 entries"),
    ("hunyuan_v1_moe", dict(head_dim=8, use_mla=True), "use_mla=True is supported at False only"),
    ("mellum", dict(rope_parameters={kind: {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "truncate": False,
                                            "original_max_position_embeddings": 16} for kind in (FULL, SLIDING)}),
     "truncate=False is not supported in rope settings by kind of layers"),
    ("minimax_m2", dict(scoring_func="softmax"), "scoring_func='softmax' is supported at 'sigmoid' only"),
])  # fmt: skip
def test_refused_by_name(model_type, fields, told):
    family = family_of(model_type)
    with pytest.raises(ValueError, match=told):
        family.to_moeba(family.read_config({"model_type": model_type, **fields}))


@pytest.mark.parametrize("target, fields, told", [
    ("ernie4_5_moe", dict(mlp_layer_types=["sparse", "sparse", "dense", "sparse"], num_hidden_layers=4), "there: "),
    ("cohere2_moe", dict(shared_expert_intermediate_size=20, moe_intermediate_size=16), "20 .there: 16"),
    ("mellum", dict(router_type="topk_sigmoid"), "router_type='topk_sigmoid'"),
    ("granitemoe", dict(router_type="topk"), "router_type='topk'"),
    ("olmoe", dict(longrope_factors="short", rope_parameters=LONGROPE, head_dim=4, hidden_size=16, embedding_size=16,
                   num_attention_heads=4, num_key_value_heads=4), "longrope_factors='short'"),
])  # fmt: skip
def test_what_a_family_cannot_hold_is_named(target, fields, told):
    given = family_of(target).to_moeba(native.draw(target, 1)).to_dict()
    for name in ("layer_types", "rotary_layers"):
        given.pop(name)
    if "mlp_layer_types" not in fields:
        given["mlp_layer_types"] = None
    given |= dict(num_experts=4, num_experts_per_tok=2, sliding_window=None) | fields
    with pytest.raises(ValueError, match=f"'{target}' cannot hold this model: .*{told}"):
        family_of(target).to_native(MoebaConfig.from_dict(given))

"""Command A+, ERNIE 4.5 MoE, Mellum 2 and MiniMax-M2."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, experts, layer_types, llama_like, rope, router_loss

MLP_KINDS = ("sparse", "sparse", "dense")


@draws("cohere2_moe")
def cohere2_moe(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, eps_name="layer_norm_eps") | experts(rng)
    layers = fields["num_hidden_layers"]
    if chance(rng, 0.3):
        del fields["rope_parameters"]
    return fields | dict(
        rope_theta=rng.choice([10000.0, 77.0]),
        attention_bias=chance(rng),
        logit_scale=rng.choice([0.0625, 1.0]),
        sliding_window=rng.choice([2, 3, 9]),
        layer_types=rng.choice([None, layer_types(rng, layers)]),
        mlp_layer_types=rng.choice([None, layer_types(rng, layers, MLP_KINDS)]),
        prefix_dense_sliding_window_pattern=rng.choice([1, 2]),
        prefix_dense_intermediate_size=rng.choice([None, 40]),
        num_shared_experts=rng.choice([0, 1, 2]),
        shared_expert_combination_strategy=rng.choice(["average", "sum"]),
        expert_selection_fn=rng.choice(["softmax", "sigmoid"]),
        norm_topk_prob=chance(rng),
        rms_norm_eps=rng.choice([None, 1e-5]),
    )


@draws("ernie4_5_moe")
def ernie4_5_moe(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=chance(rng)) | experts(rng, "moe_num_experts") | router_loss(rng)
    del fields["attention_dropout"]
    return fields | dict(
        moe_k=fields.pop("num_experts_per_tok"),
        use_bias=chance(rng),
        moe_intermediate_size=rng.choice([16, 21]),
        moe_num_shared_experts=rng.choice([0, 1, 2]),
        moe_layer_start_index=rng.choice([0, 0, 1]),
        moe_layer_end_index=rng.choice([-1, -1, 1]),
        moe_layer_interval=rng.choice([1, 1, 2]),
        moe_norm_min=rng.choice([1e-12, 0.5]),
    )


@draws("mellum")
def mellum(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | experts(rng) | router_loss(rng)
    layers = fields["num_hidden_layers"]
    return fields | dict(
        rope_parameters={
            kind: rope(rng, fields["head_dim"], by_kind=True)
            for kind in ("full_attention", "sliding_attention")
        },
        attention_bias=chance(rng),
        moe_intermediate_size=rng.choice([16, 21]),
        norm_topk_prob=chance(rng),
        sliding_window=rng.choice([2, 3, 9]),
        layer_types=rng.choice([None, layer_types(rng, layers)]),
        mlp_layer_types=rng.choice([None, layer_types(rng, layers, MLP_KINDS)]),
    )


@draws("minimax_m2")
def minimax_m2(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, partial=(0.5, 1.0)) | experts(rng, "num_local_experts") | router_loss(rng)
    if chance(rng, 0.3):  # as released checkpoints say it
        width = fields["head_dim"] // 2
        fields["rope_parameters"] = rope(rng, width, kinds=("default", "linear"))
        fields |= {"rotary_dim": width}
    return fields | {"router_jitter_noise": rng.choice([0.0, 0.1])}

"""Qwen2, Qwen3, Qwen2-MoE and Qwen3-MoE."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, experts, llama_like, router_loss, windows


@draws("qwen2", "qwen3")
def dense(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=model_type == "qwen3")
    fields |= windows(rng, fields["num_hidden_layers"])
    return fields | {"attention_bias": chance(rng)} if model_type == "qwen3" else fields


@draws("qwen3_moe")
def qwen3_moe(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | experts(rng) | router_loss(rng)
    return fields | dict(
        attention_bias=chance(rng),
        moe_intermediate_size=rng.choice([16, 21]),
        use_sliding_window=chance(rng),
        sliding_window=rng.choice([None, 2, 5]),
        norm_topk_prob=chance(rng),
        decoder_sparse_step=rng.choice([1, 1, 2]),
        mlp_only_layers=rng.choice([None, [], [0], [fields["num_hidden_layers"] - 1]]),
    )


@draws("qwen2_moe")
def qwen2_moe(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=chance(rng)) | experts(rng) | router_loss(rng)
    fields |= windows(rng, fields["num_hidden_layers"])
    if fields["sliding_window"] is None:  # the stock attention then fails
        fields["use_sliding_window"] = False
    return fields | dict(
        qkv_bias=chance(rng),
        moe_intermediate_size=rng.choice([16, 21]),
        shared_expert_intermediate_size=rng.choice([8, 19]),
        norm_topk_prob=chance(rng),
        decoder_sparse_step=rng.choice([1, 1, 2]),
        mlp_only_layers=rng.choice([None, [], [0], [fields["num_hidden_layers"] - 1]]),
    )

"""Mixtures that store their experts stacked: DBRX and Aria's decoder."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, experts, heads, llama_like, rope


@draws("dbrx")
def dbrx(rng: random.Random, model_type: str) -> dict[str, Any]:
    sizes, count = heads(rng, free_width=False), experts(rng)
    settings = rope(rng, sizes["head_dim"])
    return dict(
        d_model=sizes["hidden_size"],
        n_heads=sizes["num_attention_heads"],
        n_layers=rng.choice([1, 2, 3]),
        max_seq_len=rng.choice([32, 64]),
        vocab_size=rng.choice([67, 90]),
        resid_pdrop=rng.choice([0.0, 0.1]),
        rope_parameters=settings,
        pad_token_id=rng.choice([None, 0]),
        attn_config={
            "attn_pdrop": rng.choice([0.0, 0.1]),
            "clip_qkv": rng.choice([0.7, 8]),
            "kv_n_heads": sizes["num_key_value_heads"],
            "rope_theta": settings["rope_theta"],  # the stock code asks for it and does not use it
        },
        ffn_config={
            "ffn_act_fn": {"name": rng.choice(["silu", "gelu"])},
            "ffn_hidden_size": rng.choice([16, 21]),
            "moe_num_experts": count["num_experts"],
            "moe_top_k": count["num_experts_per_tok"],
            "moe_jitter_eps": rng.choice([None, 0.1]),
            "moe_loss_weight": rng.choice([0.0, 0.02]),
            "moe_normalize_expert_weights": rng.choice([None, 1.0]),
        },
    )


@draws("aria_text")
def aria_text(rng: random.Random, model_type: str) -> dict[str, Any]:
    count = experts(rng)
    return llama_like(rng, free_width=False) | {
        "hidden_act": "silu",
        "attention_bias": chance(rng),
        "mlp_bias": chance(rng),
        "moe_num_experts": count["num_experts"],
        "moe_topk": count["num_experts_per_tok"],
        "moe_num_shared_experts": rng.choice([1, 2, 3]),
    }

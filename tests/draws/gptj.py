"""GPT-J, CodeGen and GPT-Neo."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance


@draws("gptj", "codegen")
def gptj(rng: random.Random, model_type: str) -> dict[str, Any]:
    heads = rng.choice([4, 8]) if model_type == "codegen" else rng.choice([3, 4, 7])
    width = rng.choice([4, 6, 8])
    padding = {} if model_type == "codegen" else {"pad_token_id": rng.choice([None, 0])}
    return padding | dict(
        vocab_size=rng.choice([67, 90]),
        n_embd=heads * width,
        n_layer=rng.choice([1, 2, 3]),
        n_head=heads,
        n_positions=rng.choice([48, 64]),
        rotary_dim=rng.choice([size for size in (2, 4, 6, 8) if size <= width]),
        n_inner=rng.choice([None, 37, 64]),
        activation_function=rng.choice(["gelu_new", "gelu", "relu", "silu"]),
        layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
        tie_word_embeddings=chance(rng),
    )


@draws("gpt_neo")
def gpt_neo(rng: random.Random, model_type: str) -> dict[str, Any]:
    heads, blocks = rng.choice([1, 2, 3]), rng.choice([1, 2])
    pattern = rng.choice([["global"], ["local"], ["global", "local"], ["local", "global"]])
    return dict(
        vocab_size=rng.choice([67, 90]),
        hidden_size=heads * rng.choice([12, 13, 16]),
        num_layers=len(pattern) * blocks,
        num_heads=heads,
        attention_types=[[pattern, blocks]],
        window_size=rng.choice([2, 5, 9]),
        max_position_embeddings=rng.choice([48, 64]),
        intermediate_size=rng.choice([None, 37, 64]),
        activation_function=rng.choice(["gelu_new", "gelu", "relu", "silu"]),
        layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
        tie_word_embeddings=chance(rng),
        pad_token_id=rng.choice([None, 0]),
    )

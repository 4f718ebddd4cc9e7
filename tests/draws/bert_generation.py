"""BERT as a decoder."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import ACTIVATIONS


@draws("bert-generation")
def bert_generation(rng: random.Random, model_type: str) -> dict[str, Any]:
    heads = rng.choice([1, 2, 3])
    return dict(
        hidden_size=heads * rng.choice([8, 10, 16]),
        num_attention_heads=heads,
        intermediate_size=rng.choice([24, 37]),
        num_hidden_layers=rng.choice([1, 2, 3]),
        vocab_size=rng.choice([67, 90]),
        hidden_act=rng.choice(ACTIVATIONS),
        max_position_embeddings=rng.choice([64, 70]),
        hidden_dropout_prob=rng.choice([0.0, 0.1]),
        attention_probs_dropout_prob=rng.choice([0.0, 0.1]),
        layer_norm_eps=rng.choice([1e-12, 1e-5, 1e-3]),
        pad_token_id=rng.choice([None, 0]),
        is_decoder=True,
    )

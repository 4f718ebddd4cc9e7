"""OPT, BioGPT and XGLM: descendants of fairseq's decoder."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import ACTIVATIONS, chance


def heads(rng: random.Random, widths: tuple[int, ...] = (4, 5, 16)) -> tuple[int, int]:
    """Hidden size, and number of heads."""
    count = rng.choice([1, 2, 3])
    return count * rng.choice(list(widths)), count


@draws("opt")
def opt(rng: random.Random, model_type: str) -> dict[str, Any]:
    hidden, count = heads(rng)
    return dict(
        vocab_size=rng.choice([67, 90]),
        hidden_size=hidden,
        num_attention_heads=count,
        num_hidden_layers=rng.choice([1, 2, 3]),
        ffn_dim=rng.choice([24, 37]),
        max_position_embeddings=rng.choice([64, 70]),
        do_layer_norm_before=chance(rng, 0.6),
        _remove_final_layer_norm=chance(rng, 0.3),
        word_embed_proj_dim=rng.choice([None, 12, 70]),
        activation_function=rng.choice(ACTIVATIONS),
        enable_bias=chance(rng, 0.7),
        layer_norm_elementwise_affine=chance(rng, 0.7),
        dropout=rng.choice([0.0, 0.1]),
        attention_dropout=rng.choice([0.0, 0.1]),
        init_std=rng.choice([0.02, 0.05]),
        tie_word_embeddings=chance(rng, 0.7),
        pad_token_id=rng.choice([None, 0, 1]),
    )


@draws("biogpt")
def biogpt(rng: random.Random, model_type: str) -> dict[str, Any]:
    hidden, count = heads(rng)
    return dict(
        vocab_size=rng.choice([67, 90]),
        hidden_size=hidden,
        num_attention_heads=count,
        num_hidden_layers=rng.choice([1, 2, 3]),
        intermediate_size=rng.choice([24, 37]),
        hidden_act=rng.choice(ACTIVATIONS),
        hidden_dropout_prob=rng.choice([0.0, 0.1]),
        attention_probs_dropout_prob=rng.choice([0.0, 0.1]),
        max_position_embeddings=rng.choice([64, 70]),
        layer_norm_eps=rng.choice([1e-12, 1e-3]),
        scale_embedding=chance(rng),
        tie_word_embeddings=chance(rng, 0.7),
        pad_token_id=rng.choice([None, 0, 1]),
    )


@draws("xglm")
def xglm(rng: random.Random, model_type: str) -> dict[str, Any]:
    hidden, count = heads(rng)
    return dict(
        vocab_size=rng.choice([67, 90]),
        d_model=hidden,
        attention_heads=count,
        num_layers=rng.choice([1, 2, 3]),
        ffn_dim=rng.choice([24, 37]),
        activation_function=rng.choice(ACTIVATIONS),
        max_position_embeddings=rng.choice([32, 64]),
        dropout=rng.choice([0.0, 0.1]),
        attention_dropout=rng.choice([0.0, 0.1]),
        init_std=rng.choice([0.02, 0.05]),
        scale_embedding=chance(rng),
        decoder_start_token_id=rng.choice([2, 5]),
        tie_word_embeddings=chance(rng, 0.7),
        pad_token_id=rng.choice([None, 0, 1]),
    )

"""BLOOM, Falcon and MPT."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import ACTIVATIONS, chance, rope

COUNTS = (1, 2, 3, 4, 6)  # alibi's slopes differ where it is no power of two
WIDTHS = (4, 5, 8)


@draws("bloom")
def bloom(rng: random.Random, model_type: str) -> dict[str, Any]:
    heads = rng.choice(COUNTS)
    exact = rng.choice([{}, {"pretraining_tp": 2}, {"slow_but_exact": True}])
    return exact | dict(
        vocab_size=rng.choice([67, 90]),
        hidden_size=heads * rng.choice(WIDTHS),
        n_head=heads,
        n_layer=rng.choice([1, 2, 3]),
        layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
        apply_residual_connection_post_layernorm=chance(rng),
        hidden_dropout=rng.choice([0.0, 0.1]),
        attention_dropout=rng.choice([0.0, 0.1]),
        tie_word_embeddings=chance(rng, 0.7),
        pad_token_id=rng.choice([None, 0]),
    )


def falcon_shape(rng: random.Random, heads: int) -> dict[str, Any]:
    """The old decoder with one or all key/value heads, side by side or in turn, or the new one with any of them."""
    fitting = [count for count in range(1, heads + 1) if heads % count == 0]
    if chance(rng):
        return dict(
            new_decoder_architecture=True,
            num_kv_heads=rng.choice([None, *fitting]),
            num_ln_in_parallel_attn=rng.choice([None, 1, 2]),
            multi_query=chance(rng),
        )
    found: dict[str, Any] = dict(parallel_attn=chance(rng), multi_query=chance(rng))
    if found["multi_query"]:
        found["num_kv_heads"] = rng.choice([None, *fitting])
    if not found["parallel_attn"]:
        found["num_ln_in_parallel_attn"] = rng.choice([None, 1, 2])
    return found


@draws("falcon")
def falcon(rng: random.Random, model_type: str) -> dict[str, Any]:
    heads, width = rng.choice(COUNTS), rng.choice([4, 6, 8])
    return falcon_shape(rng, heads) | dict(
        vocab_size=rng.choice([67, 90]),
        hidden_size=heads * width,
        num_attention_heads=heads,
        num_hidden_layers=rng.choice([1, 2, 3]),
        layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
        hidden_dropout=rng.choice([0.0, 0.1]),
        attention_dropout=rng.choice([0.0, 0.1]),
        alibi=chance(rng, 0.4),
        bias=chance(rng),
        max_position_embeddings=rng.choice([32, 64]),
        rope_parameters=rope(rng, width),
        ffn_hidden_size=rng.choice([None, 24, 37]),
        activation=rng.choice(ACTIVATIONS),
        tie_word_embeddings=chance(rng, 0.7),
        pad_token_id=rng.choice([None, 0]),
    )


@draws("mpt")
def mpt(rng: random.Random, model_type: str) -> dict[str, Any]:
    heads = rng.choice(COUNTS)
    return dict(
        vocab_size=rng.choice([67, 90]),
        d_model=heads * rng.choice(WIDTHS),
        n_heads=heads,
        n_layers=rng.choice([1, 2, 3]),
        max_seq_len=rng.choice([64, 70]),
        layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
        norm_type=rng.choice(["low_precision_layernorm", "layernorm"]),
        attn_config=dict(
            clip_qkv=rng.choice([None, 0.0, 0.5, 2.0]),
            softmax_scale=rng.choice([None, 0.3, 1.0]),
            attn_impl=rng.choice(["torch", "flash"]),
        ),
        learned_pos_emb=chance(rng),
        embedding_fraction=rng.choice([0.5, 1.0]),
        resid_pdrop=rng.choice([0.0, 0.1]),
        emb_pdrop=rng.choice([0.0, 0.1]),
        tie_word_embeddings=chance(rng, 0.7),
        pad_token_id=rng.choice([None, 0]),
    )

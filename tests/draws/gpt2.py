"""GPT, GPT-2, CTRL and GPT-BigCode."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance


def sizes(rng: random.Random) -> dict[str, Any]:
    """What all of them have. The width may be odd."""
    heads = rng.choice([1, 2, 3])
    return dict(
        vocab_size=rng.choice([67, 90]),
        n_embd=heads * rng.choice([4, 5, 16]),
        n_layer=rng.choice([1, 2, 3]),
        n_head=heads,
        n_positions=rng.choice([64, 70]),
        resid_pdrop=rng.choice([0.0, 0.1]),
        embd_pdrop=rng.choice([0.0, 0.1]),
        tie_word_embeddings=chance(rng, 0.7),
        pad_token_id=rng.choice([None, 0]),
    )


def gpt2_like(rng: random.Random) -> dict[str, Any]:
    return sizes(rng) | dict(
        n_inner=rng.choice([None, 37, 64]),
        activation_function=rng.choice(["gelu_new", "gelu", "gelu_pytorch_tanh", "relu", "silu"]),
        layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
        scale_attn_weights=chance(rng, 0.6),
        attn_pdrop=rng.choice([0.0, 0.1]),
    )


@draws("gpt2")
def gpt2(rng: random.Random, model_type: str) -> dict[str, Any]:
    return gpt2_like(rng) | dict(
        scale_attn_by_inverse_layer_idx=chance(rng), reorder_and_upcast_attn=chance(rng, 0.2)
    )


@draws("gpt_bigcode")
def gpt_bigcode(rng: random.Random, model_type: str) -> dict[str, Any]:
    return gpt2_like(rng) | dict(
        multi_query=chance(rng, 0.6),
        attention_softmax_in_fp32=chance(rng),
        scale_attention_softmax_in_fp32=chance(rng),
    )


@draws("openai-gpt")
def gpt(rng: random.Random, model_type: str) -> dict[str, Any]:
    return sizes(rng) | dict(
        afn=rng.choice(["gelu", "relu", "silu", "swish"]),
        layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
        attn_pdrop=rng.choice([0.0, 0.1]),
    )


@draws("ctrl")
def ctrl(rng: random.Random, model_type: str) -> dict[str, Any]:
    return sizes(rng) | dict(dff=rng.choice([24, 37]))

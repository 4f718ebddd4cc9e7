"""OPT, BioGPT and XGLM: descendants of fairseq's decoder."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import ACTIVATIONS, chance


def sizes(
    rng: random.Random,
    width: str = "hidden_size",
    heads: str = "num_attention_heads",
    layers: str = "num_hidden_layers",
) -> dict[str, int]:
    """Numbers of tokens, channels, heads and layers, by the names that the family has for them."""
    count = rng.choice([1, 2, 3])
    channels = count * rng.choice([4, 5, 16])
    return {
        "vocab_size": rng.choice([67, 90]),
        width: channels,
        heads: count,
        layers: rng.choice([1, 2, 3]),
    }


def dropouts(rng: random.Random) -> dict[str, float]:
    """Fields of training alone."""
    return {
        "dropout": rng.choice([0.0, 0.1]),
        "attention_dropout": rng.choice([0.0, 0.1]),
        "init_std": rng.choice([0.02, 0.05]),
    }


def ends(rng: random.Random) -> dict[str, Any]:
    """A head that is mostly tied, and a padding token or none."""
    return {"tie_word_embeddings": chance(rng, 0.7), "pad_token_id": rng.choice([None, 0, 1])}


@draws("opt")
def opt(rng: random.Random, model_type: str) -> dict[str, Any]:
    return dict(
        **sizes(rng),
        ffn_dim=rng.choice([24, 37]),
        max_position_embeddings=rng.choice([64, 70]),
        do_layer_norm_before=chance(rng, 0.6),
        _remove_final_layer_norm=chance(rng, 0.3),
        word_embed_proj_dim=rng.choice([None, 12, 70]),
        activation_function=rng.choice(ACTIVATIONS),
        enable_bias=chance(rng, 0.7),
        layer_norm_elementwise_affine=chance(rng, 0.7),
        **dropouts(rng),
        **ends(rng),
    )


@draws("biogpt")
def biogpt(rng: random.Random, model_type: str) -> dict[str, Any]:
    return dict(
        **sizes(rng),
        intermediate_size=rng.choice([24, 37]),
        hidden_act=rng.choice(ACTIVATIONS),
        hidden_dropout_prob=rng.choice([0.0, 0.1]),
        attention_probs_dropout_prob=rng.choice([0.0, 0.1]),
        max_position_embeddings=rng.choice([64, 70]),
        layer_norm_eps=rng.choice([1e-12, 1e-3]),
        scale_embedding=chance(rng),
        **ends(rng),
    )


@draws("xglm")
def xglm(rng: random.Random, model_type: str) -> dict[str, Any]:
    return dict(
        **sizes(rng, "d_model", "attention_heads", "num_layers"),
        ffn_dim=rng.choice([24, 37]),
        activation_function=rng.choice(ACTIVATIONS),
        max_position_embeddings=rng.choice([32, 64]),
        **dropouts(rng),
        scale_embedding=chance(rng),
        decoder_start_token_id=rng.choice([2, 5]),
        **ends(rng),
    )

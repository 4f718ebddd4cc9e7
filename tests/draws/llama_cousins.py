"""Relatives of Llama with other norms, another rotation or an ungated feed-forward."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, heads, layer_types, llama_like, rope

PLAIN_ACTIVATIONS = ("relu2", "silu", "gelu")


@draws("exaone4")
def exaone4(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=chance(rng))
    layers = fields["num_hidden_layers"]
    choice = rng.choice(["off", "pattern", "listed", "unused"])
    if choice == "off":  # the stock config fails where it has to make the list itself
        return fields | {"sliding_window": None, "layer_types": ["full_attention"] * layers}
    fields["sliding_window"] = rng.choice([2, 5, 9])
    if choice == "pattern":
        return fields | {"sliding_window_pattern": rng.choice([1, 2, 4])}
    if choice == "listed":
        return fields | {"layer_types": layer_types(rng, layers), "sliding_window_pattern": "LLLG"}
    return fields | {"layer_types": ["full_attention"] * layers}


@draws("helium")
def helium(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | heads(rng, free_width=False)  # the output projection is square
    fields["rope_parameters"] = rope(rng, fields["head_dim"])
    return fields | {"attention_bias": chance(rng), "mlp_bias": chance(rng)}


@draws("ernie4_5")
def ernie4_5(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | {"use_bias": rng.choice([None, False, True])}
    del fields["attention_dropout"]
    return fields


@draws("hunyuan_v1_dense")
def hunyuan_v1_dense(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | {"attention_bias": chance(rng)}
    if fields["rope_parameters"]["rope_type"] == "dynamic" and chance(rng, 0.7):
        fields["rope_parameters"]["alpha"] = rng.choice([3.0, 1000.0])
    return fields


@draws("jais2")
def jais2(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, eps_name="layer_norm_eps")
    fields["hidden_act"] = rng.choice(PLAIN_ACTIVATIONS)
    return fields | {"attention_bias": chance(rng), "mlp_bias": chance(rng)}


@draws("apertus", "apertus1p5_text")
def apertus(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=chance(rng))
    fields["hidden_act"] = rng.choice(["xielu", "xielu", "relu2", "silu"])
    return fields | {"attention_bias": chance(rng)}


@draws("nanochat")
def nanochat(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=chance(rng))
    fields["hidden_act"] = rng.choice(PLAIN_ACTIVATIONS)
    return fields | {"attention_bias": chance(rng), "final_logit_softcapping": rng.choice([None, 15.0, 2.0])}

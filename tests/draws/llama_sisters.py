"""Llama's closest relatives: the same block with windows, growing queries, multipliers or layers that do not rotate."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import chance, layer_types, llama_like, maybe


@draws("mistral")
def mistral(rng: random.Random, model_type: str) -> dict[str, Any]:
    return llama_like(rng) | {"sliding_window": rng.choice([None, 2, 5])}


@draws("ministral", "cwm")
def windows_by_layer(rng: random.Random, model_type: str) -> dict[str, Any]:
    # The stock models fail without a window, even where no layer slides.
    fields = llama_like(rng) | {"sliding_window": rng.choice([2, 5, 9])}
    fields |= maybe(rng, 0.8, layer_types=layer_types(rng, fields["num_hidden_layers"]))
    return fields | {"mlp_bias": chance(rng)} if model_type == "cwm" else fields


@draws("ministral3")
def ministral3(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng)
    rope = fields["rope_parameters"]
    # The stock model fails without these two.
    rope |= {"original_max_position_embeddings": 16, "llama_4_scaling_beta": rng.choice([0.0, 0.1, 0.7])}
    if chance(rng, 0.3):
        rope["max_position_embeddings"] = fields["max_position_embeddings"]
    return fields | {"sliding_window": rng.choice([None, 2, 5])}


@draws("arcee")
def arcee(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | {"attention_bias": chance(rng), "mlp_bias": chance(rng)}
    return fields | {"hidden_act": rng.choice(["relu2", "silu", "gelu"])}


@draws("seed_oss")
def seed_oss(rng: random.Random, model_type: str) -> dict[str, Any]:
    return llama_like(rng) | dict(
        attention_bias=chance(rng),
        attention_out_bias=chance(rng),
        mlp_bias=chance(rng),
        residual_dropout=rng.choice([0.0, 0.1]),
    )


@draws("smollm3")
def smollm3(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng, free_width=chance(rng)) | {
        "attention_bias": chance(rng),
        "mlp_bias": chance(rng),
    }
    layers = fields["num_hidden_layers"]
    fields |= maybe(rng, 0.5, no_rope_layers=[rng.randrange(2) for _ in range(layers + rng.randrange(2))])
    if "no_rope_layers" not in fields:
        fields["no_rope_layer_interval"] = rng.choice([1, 2, 4])
    choice = rng.choice(["off", "unlisted", "listed"])
    if choice != "off":
        fields |= {"use_sliding_window": True, "sliding_window": rng.choice([2, 5])}
    if choice == "listed":
        fields["layer_types"] = layer_types(rng, layers)
    return fields


def granite_scales(rng: random.Random) -> dict[str, Any]:
    """Granite's multipliers, near those of its checkpoints for such small widths."""
    return dict(
        attention_bias=chance(rng),
        mlp_bias=chance(rng),
        embedding_multiplier=rng.choice([1.0, 12, 3.5]),
        logits_scaling=rng.choice([1.0, 8, 0.7]),
        residual_multiplier=rng.choice([1.0, 0.22]),
        attention_multiplier=rng.choice([1.0, 0.25, 0.0078125]),
    )


@draws("granite")
def granite(rng: random.Random, model_type: str) -> dict[str, Any]:
    return llama_like(rng, free_width=chance(rng)) | granite_scales(rng)


@draws("granite_swa")
def granite_swa(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = (
        llama_like(rng, free_width=chance(rng))
        | granite_scales(rng)
        | {"sliding_window": rng.choice([2, 5, 9])}
    )
    layers = fields["num_hidden_layers"]
    kinds = layer_types(rng, layers)
    if chance(rng, 0.3):
        return fields
    thetas = {kind: rng.choice([0, 500.0, 10000.0]) for kind in sorted(set(kinds))}
    listed = [0 if chance(rng, 0.2) else thetas[kind] for kind in kinds]
    return fields | {"layer_types": kinds} | maybe(rng, 0.8, layer_rope_theta=listed)

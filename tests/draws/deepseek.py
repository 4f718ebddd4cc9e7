"""DeepSeek and the families that follow it: latent attention, and experts in groups."""

from __future__ import annotations

import random
from typing import Any

from . import draws
from .common import ACTIVATIONS, chance, grouped_experts, latent, layer_types, llama_like, maybe, rope


def latent_model(rng: random.Random, **fields: Any) -> dict[str, Any]:
    """A model of latent attention: sizes, rope with and without sharpening, biases."""
    found = latent(rng)
    heads, layers = rng.choice([1, 2, 3]), rng.choice([1, 2, 3])
    settings = rope(rng, found["qk_rope_head_dim"])
    if settings["rope_type"] != "default":
        settings |= maybe(rng, 0.4, mscale_all_dim=rng.choice([0.0, 0.7, 1.0]))
    return (
        dict(
            **found,
            hidden_size=rng.choice([24, 30]),
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=rng.choice([67, 90]),
            intermediate_size=rng.choice([24, 37]),
            num_hidden_layers=layers,
            hidden_act=rng.choice(ACTIVATIONS),
            max_position_embeddings=rng.choice([32, 64]),
            tie_word_embeddings=chance(rng),
            rope_parameters=settings,
            rms_norm_eps=rng.choice([1e-6, 1e-5, 1e-3]),
            attention_bias=chance(rng),
            attention_dropout=rng.choice([0.0, 0.1]),
            pad_token_id=rng.choice([None, 0]),
        )
        | fields
    )


def sparse(rng: random.Random, layers: int, start: str | None = "first_k_dense_replace") -> dict[str, Any]:
    """Experts, shared ones too. `start` names the number of leading dense layers, which may be all."""
    return dict(
        **grouped_experts(rng, "n_routed_experts"),
        moe_intermediate_size=rng.choice([16, 21]),
        n_shared_experts=rng.choice([1, 2]),
        routed_scaling_factor=rng.choice([1.0, 2.5, 0.7]),
        norm_topk_prob=chance(rng),
        **({start: rng.choice([0, 0, 1, layers])} if start else {}),
    )


def layer_kinds(rng: random.Random, layers: int) -> list[str]:
    """Dense and sparse layers in any order."""
    return [rng.choice(["dense", "sparse", "sparse"]) for _ in range(layers)]


@draws("deepseek_v3", "sarvam_mla")
def deepseek_v3(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = latent_model(rng)
    return fields | sparse(rng, fields["num_hidden_layers"]) | {"rope_interleave": chance(rng)}


@draws("deepseek_v2")
def deepseek_v2(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = latent_model(rng)
    fields |= sparse(rng, fields["num_hidden_layers"]) | {"mlp_bias": chance(rng)}
    del fields["norm_topk_prob"]
    if chance(rng, 0.4):  # every expert is open to every token, whatever the groups say
        return fields | {"topk_method": "greedy"} | maybe(rng, n_group=None, topk_group=None)
    return fields | {"topk_method": "group_limited_greedy"}


@draws("mistral4")
def mistral4(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = latent_model(rng) | {"rope_interleave": chance(rng)}
    fields |= sparse(rng, fields["num_hidden_layers"])
    rotated = fields["qk_rope_head_dim"]
    settings = rope(rng, rotated, kinds=("linear", "dynamic", "yarn", "longrope", "llama3"))
    settings |= {"original_max_position_embeddings": 16, "llama_4_scaling_beta": rng.choice([0.0, 0.1, 0.7])}
    settings |= maybe(rng, 0.4, mscale_all_dim=rng.choice([0.7, 1.0]))
    settings |= maybe(rng, partial_rotary_factor=rotated / (rotated + fields["qk_nope_head_dim"]))
    return fields | {"rope_parameters": settings}


@draws("axk1", "glm4_moe_lite")
def listed_layers(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = latent_model(rng) | {"rope_interleave": chance(rng)}
    fields |= sparse(rng, fields["num_hidden_layers"], start=None)
    fields["mlp_layer_types"] = layer_kinds(rng, fields["num_hidden_layers"])
    if model_type == "axk1":
        fields["q_lora_rank"] = rng.choice([11, 12])
    return fields


def grouped_query_model(rng: random.Random, free_width: bool = True, **settings: Any) -> dict[str, Any]:
    """A model of Llama's attention with DeepSeek-V3's experts."""
    fields = llama_like(rng, free_width=free_width, **settings)
    return fields | sparse(rng, fields["num_hidden_layers"])


@draws("glm4_moe", "sarvam_moe")
def glm4_moe(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = grouped_query_model(rng, partial=(0.5, 1.0))
    return fields | {"attention_bias": chance(rng), "use_qk_norm": chance(rng)}


@draws("dots1")
def dots1(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = grouped_query_model(rng) | {
        "attention_bias": chance(rng),
        "sliding_window": rng.choice([2, 3, 9]),
    }
    layers = fields["num_hidden_layers"]
    if chance(rng):
        return fields | {"layer_types": layer_types(rng, layers)}
    return fields | {"max_window_layers": rng.randrange(layers + 2)}


@draws("solar_open")
def solar_open(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng) | {"attention_bias": chance(rng)}
    del fields["intermediate_size"]
    return fields | sparse(rng, fields["num_hidden_layers"], start=None)


@draws("exaone_moe")
def exaone_moe(rng: random.Random, model_type: str) -> dict[str, Any]:
    fields = llama_like(rng)
    layers = fields["num_hidden_layers"]
    experts = sparse(rng, layers)
    experts["num_experts"], experts["num_shared_experts"] = (
        experts.pop("n_routed_experts"),
        experts.pop("n_shared_experts"),
    )
    fields |= experts | {"sliding_window": rng.choice([2, 3, 9])}
    fields |= maybe(rng, mlp_layer_types=layer_kinds(rng, layers))
    if chance(rng):
        return fields | {"layer_types": layer_types(rng, layers)}
    return fields | {"sliding_window_pattern": rng.choice([2, 3, 4])}

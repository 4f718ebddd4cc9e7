"""Sizes and costs of a model, from its config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .block_fields import NORMS_PER_BLOCK, NORMS_WITH_BIAS


def layer_view(config: Any, layer_idx: int) -> Any:
    """The config of one layer: sizes may differ between layers through `per_layer_config`."""
    return config.per_layer_config[layer_idx] if config.is_heterogeneous else config


def each_layer(config: Any) -> list[Any]:
    """The config of each layer where layers differ, or the one config of all."""
    return (
        [config.per_layer_config[i] for i in range(config.num_hidden_layers)]
        if config.is_heterogeneous
        else [config]
    )


def rope_of(config: Any) -> dict[str, Any]:
    """Rope settings, one dict or one for each kind of layer; empty where nothing rotates."""
    return getattr(config, "rope_parameters", None) or {}


def each_rope(config: Any) -> list[dict[str, Any]]:
    """The rope settings of each kind of layers, or the one of all; none where nothing rotates."""
    rope = rope_of(config)
    kinds = [value for value in rope.values() if isinstance(value, dict)]
    return [settings for settings in kinds or [rope] if "rope_type" in settings]


def longrope_switch(config: Any) -> int | None:
    """The length from which `longrope` takes its long factors, if the config has that rope type."""
    ropes = (rope for rope in each_rope(config) if rope["rope_type"] == "longrope")
    lengths = [rope["original_max_position_embeddings"] for rope in ropes]
    return min(lengths, default=None)


def rotated_width(config: Any) -> int:
    """How many entries of a head rope turns."""
    rope = rope_of(config)
    if config.rope_is_per_layer_type:
        rope = next(iter(rope.values()))
    return int(config.rotary_head_dim * rope.get("partial_rotary_factor", 1.0))


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters: those multiplied as matrices, and all others (biases, norms, tables)."""

    matrices: int = 0
    others: int = 0

    def __add__(self, more: Weights) -> Weights:
        return Weights(self.matrices + more.matrices, self.others + more.others)

    def __mul__(self, times: int) -> Weights:
        return Weights(self.matrices * times, self.others * times)


def _linear(inputs: int, outputs: int, bias: bool) -> Weights:
    return Weights(inputs * outputs, outputs if bias else 0)


def _norm_of(norm_type: str, bias: bool, width: int) -> Weights:
    if norm_type.endswith("nonparametric"):
        return Weights()
    return Weights(others=width * (2 if norm_type in NORMS_WITH_BIAS and bias else 1))


def _norm(config: Any, width: int) -> Weights:
    return _norm_of(config.norm_type, config.norm_bias, width)


def _inner_norm(config: Any, width: int) -> Weights:
    return _norm_of(config.qk_norm_type, config.qk_norm_bias, width)


# Activations that learn, and how many numbers.
LEARNED_ACTIVATIONS = {"xielu": 2, "prelu": 1}


def _activation(config: Any) -> Weights:
    return Weights(others=LEARNED_ACTIVATIONS.get(config.hidden_act, 0))


def _feed_forward(config: Any, width: int, bias: bool) -> Weights:
    projections = 1 if config.feed_forward_type == "mlp" else 2
    return _linear(config.hidden_size, width, bias) * projections + _linear(width, config.hidden_size, bias)


def _attention(config: Any, layer_idx: int) -> Weights:
    inputs = _latent_inputs(config) if config.attention_type == "latent" else _grouped_query_inputs(config)
    values = config.num_attention_heads * config.v_head_dim
    total = inputs + _linear(values, config.hidden_size, config.attention_output_bias)
    if config.layer_types[layer_idx] in (config.attention_sink_layer_types or ()):
        total += Weights(others=config.num_attention_heads)
    return total


def _grouped_query_inputs(config: Any) -> Weights:
    hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    queries, keys = heads * config.head_dim, kv_heads * config.head_dim
    total = _linear(hidden, queries, config.attention_bias) + _linear(hidden, keys, config.attention_bias)
    total += _linear(hidden, kv_heads * config.v_head_dim, config.attention_bias)
    if config.qk_norm == "head":
        total += _inner_norm(config, config.head_dim) * 2
    elif config.qk_norm != "none":
        total += _inner_norm(config, queries) + _inner_norm(config, keys)
    if config.attention_output_gate != "none":
        per_head = config.attention_output_gate.endswith("per_head")
        total += _linear(hidden, heads * (1 if per_head else config.v_head_dim), False)
    return total


def _latent_inputs(config: Any) -> Weights:
    hidden, rank, heads = config.hidden_size, config.kv_lora_rank, config.num_attention_heads
    passing = config.head_dim - config.qk_rope_head_dim
    total = _linear(hidden, rank + config.qk_rope_head_dim, config.attention_bias)
    total += _inner_norm(config, rank) + _linear(rank, heads * (passing + config.v_head_dim), False)
    if config.q_lora_rank is None:
        return total + _linear(hidden, heads * config.head_dim, False)
    total += _linear(hidden, config.q_lora_rank, config.attention_bias)
    return (
        total
        + _inner_norm(config, config.q_lora_rank)
        + _linear(config.q_lora_rank, heads * config.head_dim, False)
    )


def _sparse(config: Any, active_only: bool) -> Weights:
    experts: int = config.num_experts_per_tok if active_only else config.num_experts
    total = _feed_forward(config, config.moe_intermediate_size, config.expert_bias) * experts
    total += _linear(config.hidden_size, config.num_experts, config.router_bias) + _activation(config)
    if config.shared_expert_intermediate_size:
        total += _feed_forward(config, config.shared_expert_intermediate_size, config.mlp_bias)
        total += _linear(config.hidden_size, 1, False) * int(config.shared_expert_gate) + _activation(config)
    return total + _norm(config, config.hidden_size) * int(config.moe_output_norm)


def _layer(config: Any, layer_idx: int, active_only: bool) -> Weights:
    layer = layer_view(config, layer_idx)
    total = (
        _attention(layer, layer_idx) + _norm(layer, config.hidden_size) * NORMS_PER_BLOCK[config.block_order]
    )
    if config.mlp_layer_types[layer_idx] == "sparse":
        return total + _sparse(layer, active_only)
    return total + _feed_forward(layer, layer.intermediate_size, layer.mlp_bias) + _activation(config)


def count_weights(config: Any, active_only: bool = False) -> Weights:
    """The causal language model's weights; a tied table counts once, as the head's matrix."""
    total = _linear(config.embedding_size, config.vocab_size, config.lm_head_bias)
    if not config.tie_word_embeddings:
        total += Weights(others=config.vocab_size * config.embedding_size)
    if config.embedding_size != config.hidden_size:
        total += _linear(config.embedding_size, config.hidden_size, False) * 2
    if config.embedding_norm:
        total += _norm(config, config.hidden_size)
    if config.position_embedding_type == "relative":
        total += Weights(others=config.relative_attention_num_buckets * config.num_attention_heads)
    if config.position_embedding_type == "learned":
        total += Weights(
            others=(config.max_position_embeddings + config.position_offset) * config.hidden_size
        )
    for layer_idx in range(config.num_hidden_layers):
        total += _layer(config, layer_idx, active_only)
    return total + _norm(config, config.hidden_size) * int(config.final_norm)


def count_params(config: Any, active_only: bool = False) -> int:
    """Parameters of the causal language model: embeddings, blocks, final norm and head (a tied head counts
    once).

    With `active_only`, a sparse layer counts `num_experts_per_tok` of its experts, and a looked-up embedding
    table counts in full, as published figures do.
    """
    weights = count_weights(config, active_only)
    return weights.matrices + weights.others


def flops_per_token(config: Any, context_length: int = 0) -> int:
    """Two operations per weight of each matrix in use, and per product of attention over the visible context.

    Exactly the matrix multiplications of decoding one token after `context_length` cached ones. Additions of
    biases, norms and activations are left out, as `torch.utils.flop_counter` does.
    """
    total = 2 * count_weights(config, active_only=True).matrices
    for layer_idx, layer_type in enumerate(config.layer_types):
        layer = layer_view(config, layer_idx)
        visible = context_length + 1
        if layer_type == "sliding_attention":
            visible = min(visible, layer.sliding_window)
        total += 2 * layer.num_attention_heads * (layer.head_dim + layer.v_head_dim) * visible
        if layer.attention_type == "latent":  # earlier tokens are unfolded again at each step
            passing = layer.head_dim - layer.qk_rope_head_dim
            unfolded = layer.num_attention_heads * (passing + layer.v_head_dim)
            total += 2 * layer.kv_lora_rank * unfolded * (visible - 1)
    return total


def kv_cache_bytes_per_token(config: Any, bytes_per_value: int = 2) -> int:
    """Bytes that a token adds to the caches of all layers."""
    layers = (layer_view(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
    return bytes_per_value * sum(cached_values(layer) for layer in layers)


def cached_values(layer: Any) -> int:
    """Numbers that a layer keeps of a token: a key and a value for each key/value head, or latent and shared key."""
    if layer.attention_type == "latent":
        return int(layer.kv_lora_rank + layer.qk_rope_head_dim)
    return int(layer.num_key_value_heads * (layer.head_dim + layer.v_head_dim))

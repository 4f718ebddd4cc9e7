"""Sizes and costs of a model, from its config alone."""

from __future__ import annotations

from typing import Any


def layer_view(config: Any, layer_idx: int) -> Any:
    """The config of one layer: sizes may differ between layers through `per_layer_config`."""
    return config.per_layer_config[layer_idx] if config.is_heterogeneous else config


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _norm(config: Any, width: int) -> int:
    if config.norm_type.endswith("nonparametric"):
        return 0
    return width * (2 if config.norm_type == "layernorm" and config.norm_bias else 1)


def _feed_forward(config: Any, width: int, bias: bool) -> int:
    projections = 2 if config.feed_forward_type == "gated" else 1
    return projections * _linear(config.hidden_size, width, bias) + _linear(width, config.hidden_size, bias)


def _attention(config: Any) -> int:
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    total = _linear(config.hidden_size, queries, config.attention_bias)
    total += 2 * _linear(config.hidden_size, keys, config.attention_bias)
    total += _linear(queries, config.hidden_size, config.attention_output_bias)
    if config.qk_norm == "head":
        total += 2 * _norm(config, config.head_dim)
    elif config.qk_norm == "full":
        total += _norm(config, queries) + _norm(config, keys)
    return total


def _sparse(config: Any, active_only: bool) -> int:
    experts = config.num_experts_per_tok if active_only else config.num_experts
    total = experts * _feed_forward(config, config.moe_intermediate_size, config.expert_bias)
    total += _linear(config.hidden_size, config.num_experts, False)
    total += config.num_experts if config.router_bias else 0
    if config.shared_expert_intermediate_size:
        total += _feed_forward(config, config.shared_expert_intermediate_size, config.mlp_bias)
        total += config.hidden_size if config.shared_expert_gate else 0
    return total


NORMS_PER_BLOCK = {
    "pre_norm": 2,
    "post_norm": 2,
    "sandwich_norm": 4,
    "output_norm": 2,
    "parallel": 1,
    "parallel_two_norms": 2,
}


def _layer(config: Any, layer_idx: int, active_only: bool) -> int:
    layer = layer_view(config, layer_idx)
    total = _attention(layer) + NORMS_PER_BLOCK[config.block_order] * _norm(layer, config.hidden_size)
    if config.mlp_layer_types[layer_idx] == "sparse":
        return total + _sparse(layer, active_only)
    return total + _feed_forward(layer, layer.intermediate_size, layer.mlp_bias)


def count_params(config: Any, active_only: bool = False) -> int:
    """Parameters of the causal language model: embeddings, blocks, final norm and head (a tied head counts once).

    With `active_only`, a sparse layer counts `num_experts_per_tok` of its experts, and a looked-up embedding table
    counts in full, as published figures do.
    """
    total = config.vocab_size * config.hidden_size
    if config.position_embedding_type == "learned":
        total += (config.max_position_embeddings + config.position_offset) * config.hidden_size
    total += sum(_layer(config, i, active_only) for i in range(config.num_hidden_layers))
    total += _norm(config, config.hidden_size) if config.final_norm else 0
    if not config.tie_word_embeddings:
        total += config.vocab_size * config.hidden_size
    return total + (config.vocab_size if config.lm_head_bias else 0)


def flops_per_token(config: Any, context_length: int = 0) -> int:
    """Two operations per active weight (lookups are free), plus scores and mixing over the visible context."""
    tables = config.vocab_size * config.hidden_size
    if config.position_embedding_type == "learned":
        tables += (config.max_position_embeddings + config.position_offset) * config.hidden_size
    weights = count_params(config, active_only=True) - tables
    if config.tie_word_embeddings:
        weights += config.vocab_size * config.hidden_size
    total = 2 * weights
    for i, layer_type in enumerate(config.layer_types):
        layer = layer_view(config, i)
        visible = context_length + 1
        if layer_type == "sliding_attention":
            visible = min(visible, layer.sliding_window)
        total += 4 * layer.num_attention_heads * layer.head_dim * visible
    return total


def kv_cache_bytes_per_token(config: Any, bytes_per_value: int = 2) -> int:
    """One key and one value vector for each key/value head of each layer."""
    layers = (layer_view(config, i) for i in range(config.num_hidden_layers))
    return sum(2 * layer.num_key_value_heads * layer.head_dim * bytes_per_value for layer in layers)

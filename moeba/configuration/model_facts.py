"""Sizes and costs of a model, from its config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def layer_view(config: Any, layer_idx: int) -> Any:
    """The config of one layer: sizes may differ between layers through `per_layer_config`."""
    return config.per_layer_config[layer_idx] if config.is_heterogeneous else config


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


def _norm(config: Any, width: int) -> Weights:
    if config.norm_type.endswith("nonparametric"):
        return Weights()
    return Weights(others=width * (2 if config.norm_type == "layernorm" and config.norm_bias else 1))


def _feed_forward(config: Any, width: int, bias: bool) -> Weights:
    projections = 2 if config.feed_forward_type == "gated" else 1
    return _linear(config.hidden_size, width, bias) * projections + _linear(width, config.hidden_size, bias)


def _attention(config: Any) -> Weights:
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    total = _linear(config.hidden_size, queries, config.attention_bias)
    total += _linear(config.hidden_size, keys, config.attention_bias) * 2
    total += _linear(queries, config.hidden_size, config.attention_output_bias)
    if config.qk_norm == "head":
        total += _norm(config, config.head_dim) * 2
    elif config.qk_norm == "full":
        total += _norm(config, queries) + _norm(config, keys)
    return total


def _sparse(config: Any, active_only: bool) -> Weights:
    experts = config.num_experts_per_tok if active_only else config.num_experts
    total = _feed_forward(config, config.moe_intermediate_size, config.expert_bias) * experts
    total += _linear(config.hidden_size, config.num_experts, config.router_bias)
    if config.shared_expert_intermediate_size:
        total += _feed_forward(config, config.shared_expert_intermediate_size, config.mlp_bias)
        total += _linear(config.hidden_size, 1, False) * int(config.shared_expert_gate)
    return total


NORMS_PER_BLOCK = {
    "pre_norm": 2,
    "post_norm": 2,
    "sandwich_norm": 4,
    "output_norm": 2,
    "parallel": 1,
    "parallel_two_norms": 2,
}


def _layer(config: Any, layer_idx: int, active_only: bool) -> Weights:
    layer = layer_view(config, layer_idx)
    total = _attention(layer) + _norm(layer, config.hidden_size) * NORMS_PER_BLOCK[config.block_order]
    if config.mlp_layer_types[layer_idx] == "sparse":
        return total + _sparse(layer, active_only)
    return total + _feed_forward(layer, layer.intermediate_size, layer.mlp_bias)


def count_weights(config: Any, active_only: bool = False) -> Weights:
    """The causal language model's weights; a tied table counts once, as the head's matrix."""
    total = _linear(config.hidden_size, config.vocab_size, config.lm_head_bias)
    if not config.tie_word_embeddings:
        total += Weights(others=config.vocab_size * config.hidden_size)
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
        total += 4 * layer.num_attention_heads * layer.head_dim * visible
    return total


def kv_cache_bytes_per_token(config: Any, bytes_per_value: int = 2) -> int:
    """One key and one value vector for each key/value head of each layer."""
    layers = (layer_view(config, i) for i in range(config.num_hidden_layers))
    return sum(2 * layer.num_key_value_heads * layer.head_dim * bytes_per_value for layer in layers)

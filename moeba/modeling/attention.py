"""Attention: each token reads from the tokens it may see."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..configuration.configuration_moeba import MoebaConfig
from .norms import build_norm
from .positions import CosSin, apply_rotary

# What a token may see, by (is_causal, layer type).
MASKS = {
    (True, "full_attention"): create_causal_mask,
    (True, "sliding_attention"): create_sliding_window_causal_mask,
    (False, "full_attention"): create_bidirectional_mask,
    (False, "sliding_attention"): create_bidirectional_sliding_window_mask,
}


def build_masks(config: MoebaConfig, **tensors: Any) -> dict[str, torch.Tensor | None]:
    """One mask for each layer type in use, in the form that the attention implementation wants."""
    if not config.is_causal:
        tensors.pop("position_ids", None)
    return {
        kind: MASKS[config.is_causal, kind](config=config, **tensors)
        for kind in sorted(set(config.layer_types))
    }


def repeat_kv(hidden_states: torch.Tensor, groups: int) -> torch.Tensor:
    """Repeat each key/value head for its `groups` query heads: `[B, KV, T, D] -> [B, H, T, D]`."""
    batch, heads, length, head_dim = hidden_states.shape
    if groups == 1:
        return hidden_states
    expanded = hidden_states[:, :, None].expand(batch, heads, groups, length, head_dim)
    return expanded.reshape(batch, heads * groups, length, head_dim)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: scores, mask, softmax in float32, weighted sum.

    Args:
        query: `[batch, heads, queries, head_dim]`. key, value: `[batch, kv_heads, keys, head_dim]`.
        attention_mask: added to the scores, `[batch or 1, 1, queries, keys]`.

    Returns:
        The mixed values `[batch, queries, heads, head_dim]` and the weights `[batch, heads, queries, keys]`.
    """
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class MoebaAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023): several query heads share one key/value head."""

    def __init__(self, config: MoebaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        scaling = config.attention_multiplier
        self.scaling = self.head_dim**-0.5 if scaling is None else scaling
        self.attention_dropout = config.attention_dropout
        self.is_causal = config.is_causal
        self.layer_type = config.layer_types[layer_idx]
        self.sliding_window = config.sliding_window if self.layer_type == "sliding_attention" else None
        self.softcap = config.attn_logit_softcapping

        queries = config.num_attention_heads * self.head_dim
        keys = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_output_bias)
        self.qk_norm = config.qk_norm
        if self.qk_norm != "none":
            self.q_norm = build_norm(config, self.head_dim if self.qk_norm == "head" else queries)
            self.k_norm = build_norm(config, self.head_dim if self.qk_norm == "head" else keys)

    def _heads(self, projected: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """`[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]`, normalised if asked."""
        if norm is not None and self.qk_norm == "full":
            projected = norm(projected)
        heads = projected.view(*projected.shape[:-1], -1, self.head_dim)
        if norm is not None and self.qk_norm == "head":
            heads = norm(heads)
        return heads.transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: CosSin | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mixed values `[batch, tokens, hidden]`, and the attention weights if they are kept."""
        query = self._heads(self.q_proj(hidden_states), getattr(self, "q_norm", None))
        key = self._heads(self.k_proj(hidden_states), getattr(self, "k_norm", None))
        value = self._heads(self.v_proj(hidden_states), None)

        if position_embeddings is not None:
            query = apply_rotary(query, *position_embeddings)
            key = apply_rotary(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        if self.softcap is not None:
            kwargs["softcap"] = self.softcap
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        output = output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.o_proj(output), weights

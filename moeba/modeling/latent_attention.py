"""Latent attention: the keys and values of all heads unfold from one small vector a token, the only one cached."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..configuration.configuration_moeba import MoebaConfig
from ..library.upstream import Cache, takes_cache
from .attention import MoebaAttention
from .norms import build_inner_norm
from .positions import CosSin, apply_rotary, pairs_to_halves, yarn_sharpening


class MoebaLatentAttention(MoebaAttention):
    """Multi-head latent attention (DeepSeek-V2, 2024).

    Of each head, the last `qk_rope_head_dim` entries rotate; the rotated key is shared by all heads.
    """

    def __init__(self, config: MoebaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        heads, hidden = config.num_attention_heads, config.hidden_size
        self.rotated = config.qk_rope_head_dim
        self.passing = config.head_dim - config.qk_rope_head_dim
        self.v_head_dim = config.v_head_dim
        self.kv_lora_rank = config.kv_lora_rank
        sharpening = yarn_sharpening(config, self.layer_type)
        self.scaling = self.scaling * sharpening * sharpening
        self.interleaved = config.rope_interleave
        self.q_lora_rank = config.q_lora_rank
        if self.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * self.head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=config.attention_bias)
            self.q_a_layernorm = build_inner_norm(config, config.q_lora_rank)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * self.head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(
            hidden, config.kv_lora_rank + self.rotated, bias=config.attention_bias
        )
        self.kv_a_layernorm = build_inner_norm(config, config.kv_lora_rank)
        self.kv_b_proj = nn.Linear(config.kv_lora_rank, heads * (self.passing + self.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * self.v_head_dim, hidden, bias=config.attention_output_bias)

    def _queries(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[batch, heads, tokens, head_dim]`."""
        if self.q_lora_rank is None:
            projected = self.q_proj(hidden_states)
        else:
            projected = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        return projected.view(*projected.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _unfold(self, latent: torch.Tensor, turned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[batch, heads, keys, ...]` from latents `[batch, 1, keys, rank]` and shared rotated keys."""
        unfolded = self.kv_b_proj(latent.squeeze(1))
        unfolded = unfolded.view(*unfolded.shape[:-1], -1, self.passing + self.v_head_dim).transpose(1, 2)
        passing, value = unfolded.split([self.passing, self.v_head_dim], dim=-1)
        turned = turned.expand(-1, passing.shape[1], -1, -1)
        return torch.cat((passing, turned), dim=-1), value

    @takes_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: CosSin | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mixed values `[batch, tokens, hidden]`, and the attention weights if they are kept."""
        passing, turning = self._queries(hidden_states).split([self.passing, self.rotated], dim=-1)
        compressed = self.kv_a_proj_with_mqa(hidden_states)
        latent, key = compressed.split([self.kv_lora_rank, self.rotated], dim=-1)
        latent, key = self.kv_a_layernorm(latent).unsqueeze(1), key.unsqueeze(1)
        if self.is_rotary and position_embeddings is not None:
            if self.interleaved:
                turning, key = pairs_to_halves(turning), pairs_to_halves(key)
            turning = apply_rotary(turning, *position_embeddings)
            key = apply_rotary(key, *position_embeddings)
        if past_key_values is not None:
            latent, key = past_key_values.update(latent, key, self.layer_idx, kwargs=kwargs)
        query = torch.cat((passing, turning), dim=-1)
        key, value = self._unfold(latent, key)
        output, weights = self.mix(query, key, value, attention_mask, position_ids, **kwargs)
        output = output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.o_proj(output), weights

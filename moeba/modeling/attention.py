"""Attention: each token reads from the tokens it may see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..configuration.configuration_moeba import MoebaConfig
from ..library.upstream import (
    ALL_ATTENTION_FUNCTIONS,
    CACHE,
    Cache,
    attention_of,
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
    takes_cache,
    update_paged_cache,
)
from .norms import Width, build_inner_norm
from .positions import CosSin, apply_rotary, names_rotated_part, query_growth

# What a token may see, by (is_causal, layer type).
MASKS = {
    (True, "full_attention"): create_causal_mask,
    (True, "sliding_attention"): create_sliding_window_causal_mask,
    (False, "full_attention"): create_bidirectional_mask,
    (False, "sliding_attention"): create_bidirectional_sliding_window_mask,
}


def build_masks(
    config: MoebaConfig, past_key_values: Cache | None = None, **tensors: Any
) -> dict[str, torch.Tensor | None]:
    """One mask for each layer type in use, in the form that the attention implementation wants."""
    tensors[CACHE] = past_key_values
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


def _softmax_with_sinks(scores: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Softmax over the keys and one sink a head, whose share is then left out (GPT-OSS)."""
    column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[-2], -1)
    return _shifted_softmax(torch.cat([scores, column.to(scores.dtype)], dim=-1))[..., :-1]


def _shifted_softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax in the scores' own precision, which rounds their distances from the largest."""
    scores = scores - scores.max(dim=-1, keepdim=True).values  # bf16 and fp16 would overflow otherwise
    return nn.functional.softmax(scores, dim=-1, dtype=scores.dtype)


def _share_beside_sinks(scores: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """What a softmax with sinks would leave to the keys together, `[batch, heads, queries, 1]` (Granite)."""
    total = torch.logsumexp(scores, dim=-1) - sinks.view(1, -1, 1)
    return total.to(torch.float32).sigmoid().unsqueeze(-1)


def eager_attention_forward(
    module: MoebaAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: scores, mask, softmax in float32, weighted sum.

    Args:
        query: `[batch, heads, queries, head_dim]`. key, value: `[batch, kv_heads, keys, head_dim]`.
        attention_mask: added to the scores, `[batch or 1, 1 or heads, queries, keys]`.
        s_aux: sinks `[heads]`, the score of attending to nothing.

    Returns:
        The mixed values `[batch, queries, heads, head_dim]` and the weights `[batch, heads, queries, keys]`.
    """
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    if module.scores_in_float32:
        query, key = query.float(), key.float()
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    share = _share_beside_sinks(scores, s_aux) if s_aux is not None and module.scales_by_share else None
    if s_aux is not None and share is None:
        weights = _softmax_with_sinks(scores, s_aux).to(value.dtype)
    elif module.shifts_scores:
        weights = _shifted_softmax(scores).to(value.dtype)
    else:
        weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    output = torch.matmul(weights, value)
    if share is not None:
        output = output * share.to(output.dtype)
    return output.transpose(1, 2).contiguous(), weights


def additive_mask(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, is_causal: bool
) -> torch.Tensor | None:
    """A mask as PyTorch's scaled_dot_product_attention takes it, in the form that is added to the scores.

    Args:
        mask: True where a token may look, or ready to be added, or None: query i may look at keys up to i (the rest are
            places of a static cache that nothing has filled), one query alone and those not `is_causal` at all.
        query, key: `[batch, heads, queries or keys, head_dim]`.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if mask is None:
        if not is_causal or queries == 1:
            return None
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


class MoebaOutputGate(nn.Module):
    """A factor on each mixed value, or on each head's, read off the layer's input (Qiu et al. 2025)."""

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor], per_head: bool = False) -> None:
        super().__init__()
        self.activation = activation
        self.per_head = per_head

    def forward(self, output: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
        """`output` is `[batch, tokens, heads, head_dim]`; `projected` has an entry a value, or a head."""
        gate = self.activation(projected)
        return output * (gate.unsqueeze(-1) if self.per_head else gate.view_as(output))


def _softplus(projected: torch.Tensor) -> torch.Tensor:
    return nn.functional.softplus(projected.float()).to(projected.dtype)


# By attention_output_gate: activation, and whether a head has one factor.
OUTPUT_GATES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "sigmoid": (torch.sigmoid, False),
    "softplus": (_softplus, False),
    "softplus_per_head": (_softplus, True),
}


class MoebaAttention(nn.Module):
    """What every kind of attention shares: which tokens a layer sees, and the mixing itself."""

    def __init__(self, config: MoebaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        scaling = config.attention_multiplier
        self.scaling = self.head_dim**-0.5 if scaling is None else scaling
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling = self.scaling / float(layer_idx + 1)
        self.scores_in_float32 = config.attention_score_dtype == "float32"
        self.shifts_scores = config.attention_softmax_dtype == "model"
        self.attention_dropout = config.attention_dropout
        self.is_causal = config.is_causal
        self.layer_type = config.layer_types[layer_idx]
        self.sliding_window = config.sliding_window if self.layer_type == "sliding_attention" else None
        self.softcap = config.attn_logit_softcapping
        self.is_rotary = config.rotary_layers[layer_idx]
        self.joins_rotated = names_rotated_part(config, self.layer_type)
        self.query_growth = query_growth(config, self.layer_type)
        has_sinks = self.layer_type in (config.attention_sink_layer_types or ())
        if has_sinks:  # the library tells by the attribute whether there are any
            kept = torch.float32 if self.scores_in_float32 else None
            self.sinks = nn.Parameter(torch.empty(config.num_attention_heads, dtype=kept))
        self.has_sinks = has_sinks
        self.scales_by_share = config.attention_sink_form == "output_share"

    def mix(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the model's attention implementation: `[batch, tokens, heads, v_head_dim]`, and the weights if kept."""
        if self.query_growth is not None and position_ids is not None:
            query = query * self.query_growth(position_ids).to(query.dtype)
        attention = eager_attention_forward
        if (
            attention_of(self.config) == "paged|eager"
        ):  # the library's own knows no softcap and one kind of sinks
            key, value = update_paged_cache(key, value, self.layer_idx, kwargs)
        elif attention_of(self.config) == "sdpa" and (self.softcap is not None or self.has_sinks):
            key, value = update_paged_cache(key, value, self.layer_idx, kwargs)
            attention_mask = additive_mask(attention_mask, query, key, self.is_causal)
        else:
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(attention_of(self.config), attention)
        if self.softcap is not None:
            kwargs["softcap"] = self.softcap
        if self.has_sinks:
            kwargs["s_aux"] = self.sinks
        return attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            position_ids=position_ids,
            **kwargs,
        )


class MoebaGroupedQueryAttention(MoebaAttention):
    """Several query heads share one key/value head (Ainslie et al. 2023)."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, config: MoebaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.v_head_dim = config.v_head_dim
        self.clip_qkv = config.clip_qkv
        self.value_multiplier = config.attention_value_multiplier
        for name, width in (
            ("q_proj", heads * self.head_dim),
            ("k_proj", kv_heads * self.head_dim),
            ("v_proj", kv_heads * self.v_head_dim),
        ):
            setattr(self, name, nn.Linear(config.hidden_size, width, bias=config.attention_bias))
        self.o_proj = nn.Linear(
            heads * self.v_head_dim, config.hidden_size, bias=config.attention_output_bias
        )
        self.qk_norm = config.qk_norm
        self.qk_norm_after_rope = config.qk_norm_after_rope
        if self.qk_norm != "none":
            for name, count in (("q_norm", heads), ("k_norm", kv_heads)):
                widths: dict[str, Width] = {
                    "head": self.head_dim,
                    "per_head": (count, self.head_dim),
                    "full": count * self.head_dim,
                }
                setattr(self, name, build_inner_norm(config, widths[self.qk_norm]))
        self.gate = None
        if config.attention_output_gate != "none":
            activation, per_head = OUTPUT_GATES[config.attention_output_gate]
            self.gate = MoebaOutputGate(activation, per_head)
            width = heads * (1 if per_head else self.v_head_dim)
            self.g_proj = nn.Linear(config.hidden_size, width, bias=False)

    def _normalize(self, heads: torch.Tensor, name: str) -> torch.Tensor:
        """Normalise queries or keys `[batch, tokens, heads, head_dim]`, if the config asks for it."""
        if self.qk_norm == "none":
            return heads
        norm = getattr(self, name)
        return norm(heads.flatten(-2)).view_as(heads) if self.qk_norm == "full" else norm(heads)

    def _project(self, hidden_states: torch.Tensor, projection: nn.Linear, width: int) -> torch.Tensor:
        """`[batch, tokens, hidden] -> [batch, tokens, heads, width]`."""
        projected = projection(hidden_states)
        return projected.view(*projected.shape[:-1], -1, width)

    def _clip(self, heads: torch.Tensor) -> torch.Tensor:
        return heads if self.clip_qkv is None else heads.clamp(min=-self.clip_qkv, max=self.clip_qkv)

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
        query = self._project(hidden_states, self.q_proj, self.head_dim)
        key = self._project(hidden_states, self.k_proj, self.head_dim)
        value = self._clip(self._project(hidden_states, self.v_proj, self.v_head_dim)).transpose(1, 2)
        if self.value_multiplier != 1.0:
            value = value * self.value_multiplier
        angles = position_embeddings if self.is_rotary else None

        def prepare(heads: torch.Tensor, norm: str) -> torch.Tensor:
            if not self.qk_norm_after_rope:
                heads = self._normalize(heads, norm)
            heads = self._clip(heads).transpose(1, 2)
            if angles is not None:
                heads = apply_rotary(heads, *angles, joins=self.joins_rotated)
            if self.qk_norm_after_rope:
                heads = self._normalize(heads.transpose(1, 2), norm).transpose(1, 2)
            return heads

        query, key = prepare(query, "q_norm"), prepare(key, "k_norm")
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx, kwargs=kwargs)
        output, weights = self.mix(query, key, value, attention_mask, position_ids, **kwargs)
        if self.gate is not None:
            output = self.gate(output, self.g_proj(hidden_states))
        output = output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.o_proj(output), weights

"""Position biases: order as something added to attention scores, the further a key the less it counts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..configuration.configuration_moeba import MoebaConfig
from ..library.upstream import CACHE, Cache, create_masks_for_generate, init, takes_cache
from .positions import cached_tokens, key_places


class MoebaAlibi(nn.Module):
    """A slope a head, times the key's position (Press et al. 2022).

    Softmax ignores what is the same for all keys of a query, so where positions are counted from is a question of
    rounding only: from the first real token on, or, where the bias stays in float32, back from the last key.
    """

    slopes: torch.Tensor

    def __init__(self, config: MoebaConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.bias_max = config.alibi_bias_max
        self.multiplier = config.alibi_multiplier
        self.dtype = config.alibi_dtype
        self.register_buffer("slopes", self.compute_slopes(), persistent=False)

    def compute_slopes(self) -> torch.Tensor:
        """`2 ** (-max * i / n)` for n heads, `[heads]`; no power of two takes from the next one, every second first."""
        power = 2 ** math.ceil(math.log2(self.num_heads))
        exponents = torch.arange(1, power + 1, dtype=torch.float32) * (self.bias_max / power)
        slopes = 1.0 / torch.pow(2, exponents)
        return slopes if power == self.num_heads else torch.cat((slopes[1::2], slopes[::2]))[: self.num_heads]

    def init_buffers(self) -> None:
        """Fill the buffer of a model that was built on the meta device."""
        init.copy_(self.slopes, self.compute_slopes())

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, dtype: torch.dtype, real: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The bias `[batch or 1, heads, 1, keys]`.

        Args:
            queries, keys: places in the cache, `[queries]` and `[keys]`.
            dtype: the model's.
            real: 1 for real tokens and 0 for padding, `[batch, up to keys]`.
        """
        slopes = self.slopes.float()[:, None, None]
        if self.dtype == "float32":
            keys, dtype = keys - keys[-1], torch.float32
        elif real is not None:
            counted = (real.cumsum(dim=-1) - 1) * real.long()
            # No key is beyond but unused ones.
            keys = counted[:, keys.clamp(max=real.shape[-1] - 1)][:, None, None, :]
        if self.dtype == "bfloat16":
            slopes = slopes.to(torch.bfloat16)
        bias = (slopes * keys).to(dtype)
        # A division, as where attention divides scores by the root of the head's width.
        return bias if self.multiplier == 1.0 else bias / (1.0 / self.multiplier)


class MoebaRelativePositionBias(nn.Module):
    """A learned number for each head and bucket of distances (T5, Raffel et al. 2020).

    Half of the buckets are one distance each; the others grow up to `relative_attention_max_distance`.
    """

    def __init__(self, config: MoebaConfig) -> None:
        super().__init__()
        self.is_causal = config.is_causal
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.relative_attention_bias = nn.Embedding(self.num_buckets, config.num_attention_heads)

    def bucket(self, distance: torch.Tensor) -> torch.Tensor:
        """The bucket of each `key - query` distance, in the same shape."""
        buckets, first = self.num_buckets, torch.zeros_like(distance)
        if self.is_causal:
            distance = (-distance).clamp(min=0)
        else:  # half of them for keys behind the query
            buckets //= 2
            first = (distance > 0).long() * buckets
            distance = distance.abs()
        exact = buckets // 2
        growth = torch.log(distance.float().clamp(min=1) / exact) / math.log(self.max_distance / exact)
        far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
        return first + torch.where(distance < exact, distance, far)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, dtype: torch.dtype, real: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The bias `[heads, queries, keys]` in `dtype`; distances need no count of real tokens."""
        buckets = self.bucket(keys[None, :] - queries[:, None])
        return self.relative_attention_bias(buckets).permute(2, 0, 1).to(dtype)


POSITION_BIASES: dict[str, type[nn.Module]] = {
    "alibi": MoebaAlibi,
    "relative": MoebaRelativePositionBias,
}


@takes_cache
def static_cache_masks(
    config: MoebaConfig, attention_mask: torch.Tensor | None, past_key_values: Cache, **tensors: Any
) -> Any:
    """What `generate()` masks a static cache with. Alibi counts real tokens: it keeps the mask `[batch, tokens]`."""
    if config.position_embedding_type == "alibi" and attention_mask is not None:
        unused = past_key_values.get_max_length() - attention_mask.shape[-1]
        return nn.functional.pad(attention_mask, (0, max(unused, 0)))
    return create_masks_for_generate(
        config=config, attention_mask=attention_mask, **{CACHE: past_key_values}, **tensors
    )


def add_position_bias(
    bias: nn.Module,
    mask: torch.Tensor | None,
    hidden_states: torch.Tensor,
    past_key_values: Cache | None,
    attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
    layer: int = 0,
) -> torch.Tensor:
    """An additive mask `[batch or 1, heads, queries, keys]` that also carries the bias.

    Args:
        mask: `[batch or 1, 1, queries, keys]`, boolean (True: visible) or additive; None where the attention
            implementation would have masked the future by itself.
        hidden_states: `[batch, queries, hidden]`.
        past_key_values: what came before the first query.
        attention_mask: the caller's; if it is `[batch, tokens]`, it says which tokens are real.
        layer: one that the mask is for: with a sliding window, its cache forgets the first keys.
    """
    device, dtype = hidden_states.device, hidden_states.dtype
    tokens = hidden_states.shape[1]
    queries = torch.arange(tokens, device=device) + cached_tokens(past_key_values)
    length, first = key_places(past_key_values, tokens, layer)
    keys = torch.arange(length if mask is None else mask.shape[-1], device=device) + first
    if mask is None:
        mask = (keys[None, :] <= queries[:, None])[None, None]
    if mask.dtype == torch.bool:
        zero, lowest = torch.tensor([0.0, torch.finfo(dtype).min], dtype=dtype, device=device)
        mask = torch.where(mask, zero, lowest)
    is_2d = isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2
    return mask + bias(queries, keys, dtype, attention_mask if is_2d else None)

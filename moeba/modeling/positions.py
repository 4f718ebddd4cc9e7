"""Positions: how a model that sees a set of tokens knows their order.

A position can enter at three places: added to the embeddings (`EMBEDDED_POSITIONS`), as a rotation of queries
and keys (`MoebaRotaryEmbedding`), or added to the attention scores (`position_biases.py`).
`position_embedding_type="none"` uses none of them: the causal mask alone tells order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..configuration.configuration_moeba import MoebaConfig
from ..configuration.model_facts import layer_view, rope_of
from ..library.upstream import ROPE_INIT_FUNCTIONS, Cache, dynamic_rope_update, init

CosSin = tuple[torch.Tensor, torch.Tensor]


def cached_tokens(past_key_values: Cache | None) -> int | torch.Tensor:
    """How many tokens came before the new ones; a static cache counts them in a tensor."""
    return 0 if past_key_values is None else past_key_values.get_seq_length()


def key_places(past_key_values: Cache | None, new_tokens: int, layer: int) -> tuple[int, int]:
    """How many keys a layer sees once the new ones are in the cache, and the place of the first one.

    A static cache has all its places at once; that of a sliding window begins later as the text grows.
    """
    return (new_tokens, 0) if past_key_values is None else past_key_values.get_mask_sizes(new_tokens, layer)


class MoebaLearnedPositions(nn.Embedding):
    """One trained vector a position (GPT-2). `position_offset` leaves the first rows unused (OPT)."""

    def __init__(self, config: MoebaConfig) -> None:
        super().__init__(config.max_position_embeddings + config.position_offset, config.hidden_size)
        self.offset = config.position_offset

    def forward(  # type: ignore[override]  # called as other positions are, and not as an embedding
        self, hidden_states: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Vectors to add, `[batch or 1, sequence, hidden]`."""
        return super().forward(position_ids + self.offset).to(hidden_states.device)


class MoebaSinusoidalPositions(nn.Module):
    """Fixed waves (Vaswani et al. 2017), sines first and then cosines; an odd width has one sine more."""

    frequencies: torch.Tensor

    def __init__(self, config: MoebaConfig) -> None:
        super().__init__()
        self.width = config.hidden_size
        self.offset = config.position_offset
        self.register_buffer("frequencies", self.compute_frequencies(self.width), persistent=False)

    @staticmethod
    def compute_frequencies(width: int) -> torch.Tensor:
        """Angular frequency of each wave, from 1 down to almost 1/10000."""
        pairs = torch.arange(width, dtype=torch.int64).float() // 2
        # For every entry and not for every pair: the CPU rounds powers by their place in the tensor.
        return (1 / torch.pow(10000, 2 * pairs / width))[::2]

    def init_buffers(self) -> None:
        """Fill the buffer of a model that was built on the meta device."""
        init.copy_(self.frequencies, self.compute_frequencies(self.width))

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Vectors to add, `[batch or 1, sequence, hidden]`."""
        angles = (position_ids + self.offset)[..., None].float() * self.frequencies.float()
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1)[..., : self.width]
        return nn.functional.pad(waves, (0, self.width - waves.shape[-1])).to(hidden_states.dtype)


class MoebaFairseqSinusoidalPositions(MoebaSinusoidalPositions):
    """Waves whose slowest one has a frequency of exactly 1/10000 (tensor2tensor, fairseq); an odd width ends in 0."""

    @staticmethod
    def compute_frequencies(width: int) -> torch.Tensor:
        half = width // 2
        return torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / max(half - 1, 1)))


EMBEDDED_POSITIONS: dict[str, type[nn.Module]] = {
    "learned": MoebaLearnedPositions,
    "sinusoidal": MoebaSinusoidalPositions,
    "sinusoidal_fairseq": MoebaFairseqSinusoidalPositions,
}


def _default_frequencies(
    config: Any, device: Any = None, seq_len: Any = None, layer_type: str | None = None
) -> tuple[torch.Tensor, float]:
    """Inverse frequencies of plain RoPE (Su et al. 2021) over a head's rotated part, and a factor of 1."""
    parameters = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    rotated = int(config.head_dim * parameters.get("partial_rotary_factor", 1.0))
    exponents = torch.arange(0, rotated, 2, dtype=torch.int64).to(device=device, dtype=torch.float) / rotated
    return 1.0 / (parameters["rope_theta"] ** exponents), 1.0


class MoebaRotaryEmbedding(nn.Module):
    """Cosines and sines for rotating queries and keys; every rope type that transformers knows.

    `layer_type` picks one entry of `rope_parameters` where layers of different types rotate differently.
    """

    inv_freq: torch.Tensor

    def __init__(self, config: MoebaConfig, device: Any = None, layer_type: str | None = None) -> None:
        super().__init__()
        self.config = _RopeView(config, layer_type)
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = self.config.rope_parameters["rope_type"]
        frequencies, self.attention_scaling = self.frequency_function()(self.config, device)
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.register_buffer("original_inv_freq", frequencies.clone(), persistent=False)

    # The base class's weight initialisation looks this name up.
    compute_default_rope_parameters = staticmethod(_default_frequencies)

    def frequency_function(self) -> Callable[..., tuple[torch.Tensor, float]]:
        """The function `(config, device) -> (inverse frequencies, attention scaling)` of this rope type."""
        return _default_frequencies if self.rope_type == "default" else ROPE_INIT_FUNCTIONS[self.rope_type]

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> CosSin:
        """Cosine and sine, each `[batch or 1, sequence, rotated]`, rounded as `rotary_precision` says."""
        frequencies = self.inv_freq.to(device=hidden_states.device, dtype=torch.float)
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        cos = angles.cos() * self.attention_scaling
        sin = angles.sin() * self.attention_scaling
        precision = self.config.rotary_precision
        if precision != "float32":
            cos, sin = cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)
        return (cos, sin) if precision == "model" else (cos.float(), sin.float())


class _RopeView:
    """A config as rope sees it: one layer type's `rope_parameters`, and as `head_dim` the part that rotates."""

    def __init__(self, config: MoebaConfig, layer_type: str | None) -> None:
        self._config = layer_view(config, 0)  # the library reads numbers of heads, which may differ by layer
        self._layer_type = layer_type
        self.rope_parameters = self._settings()
        self.head_dim = config.rotary_head_dim
        self.is_heterogeneous = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_config":
            raise AttributeError(name)
        return getattr(self._config, name)

    def _settings(self) -> dict[str, Any]:
        rope = self._config.rope_parameters
        rope = rope[self._layer_type] if self._layer_type else rope
        if self._config.longrope_factors == "short" and "short_factor" in rope:
            rope = {**rope, "long_factor": rope["short_factor"]}
        return rope

    def standardize_rope_params(self) -> None:
        """As in transformers, for settings that were changed after the config was made."""
        self._config.standardize_rope_params()
        self.rope_parameters = self._settings()


class MoebaPerTypeRotaryEmbedding(nn.ModuleDict):
    """A rotary embedding for each layer type (Gemma 3: local layers turn faster than global ones)."""

    def __init__(self, config: MoebaConfig) -> None:
        types = sorted(set(config.layer_types))
        super().__init__({kind: MoebaRotaryEmbedding(config, layer_type=kind) for kind in types})

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> dict[str, CosSin]:
        """Cosine and sine for each layer type."""
        return {kind: rotary(hidden_states, position_ids) for kind, rotary in self.items()}


def build_rotary(config: MoebaConfig) -> nn.Module:
    """One rotary embedding for all layers, or one for each layer type if `rope_parameters` is nested."""
    return (
        MoebaPerTypeRotaryEmbedding(config) if config.rope_is_per_layer_type else MoebaRotaryEmbedding(config)
    )


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) by 90 degrees."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def names_rotated_part(config: MoebaConfig, layer_type: str) -> bool:
    """Whether the config says how large a part of a head rotates, be it all of it."""
    rope = rope_of(config)
    return "partial_rotary_factor" in rope.get(layer_type, rope)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, joins: bool = False) -> torch.Tensor:
    """Rotate the leading part of each head of `x` `[batch, heads, sequence, head_dim]`; the rest passes.

    Products are taken in the wider dtype of `x` and the angles, and rounded to that of `x`.

    Args:
        joins: put the parts together in new memory even where there is no rest, as stock models do that may have one:
            products with what lies otherwise may round otherwise.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rotated = cos.shape[-1]
    if rotated == x.shape[-1] and not joins:
        return ((x * cos) + (rotate_half(x) * sin)).to(x.dtype)
    turning, passing = x[..., :rotated], x[..., rotated:]
    turned = (turning * cos) + (rotate_half(turning) * sin)
    return torch.cat((turned.to(x.dtype), passing), dim=-1)


def pairs_to_halves(x: torch.Tensor) -> torch.Tensor:
    """Move the last dimension's even entries before the odd ones: neighbours become `rotate_half`'s pairs."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)


def query_growth(config: MoebaConfig, layer_type: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The factor `[batch or 1, 1, sequence, 1]` by which queries grow with their position (Llama 4), if any."""
    beta = config.query_growth_beta
    if beta is None:
        return None
    original = _rope_of_kind(config, layer_type)["original_max_position_embeddings"]

    def factor(position_ids: torch.Tensor) -> torch.Tensor:
        return (1 + beta * torch.log(1 + torch.floor(position_ids / original)))[:, None, :, None]

    return factor


def _rope_of_kind(config: MoebaConfig, layer_type: str) -> dict[str, Any]:
    rope = rope_of(config)
    return rope.get(layer_type, rope)


def yarn_sharpening(config: MoebaConfig, layer_type: str) -> float:
    """What scaled rope with `mscale_all_dim` multiplies queries and keys by, each (YaRN, Peng et al. 2023)."""
    rope = _rope_of_kind(config, layer_type)
    strength = rope.get("mscale_all_dim", 0)
    if rope.get("rope_type", "default") == "default" or not strength or rope["factor"] <= 1:
        return 1.0
    return 0.1 * strength * math.log(rope["factor"]) + 1.0

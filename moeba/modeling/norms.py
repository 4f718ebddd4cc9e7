"""Norms: what keeps the residual stream at a scale that the next layer can use.

The RMS variants differ in when they round: in bf16 these are different functions, so each is its own part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration.configuration_moeba import MoebaConfig

Width = (
    int | tuple[int, int]
)  # of the last dimension, or of the last two with a weight for each of their entries


class MoebaRMSNorm(nn.Module):
    """`weight * x / rms(x)`: normalised in float32, rounded, then multiplied (Zhang & Sennrich 2019).

    SGLang and older releases of vLLM replace each class `…RMSNorm`: by the weight of `type(norm)(1)` they see whether
    it is counted from 1, so `eps` has a default; `variance_epsilon` is read by its name.
    """

    def __init__(self, width: Width, eps: float = 1e-6, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def normalize(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Divide by the root mean square of the last dimension, in float32."""
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return hidden_states * torch.rsqrt(variance + self.variance_epsilon)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.weight * self.normalize(hidden_states).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


class MoebaFloat32RMSNorm(MoebaRMSNorm):
    """RMS norm that multiplies before it rounds (OLMo 2)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return (self.weight * self.normalize(hidden_states)).to(hidden_states.dtype)


class MoebaUnitOffsetRMSNorm(MoebaRMSNorm):
    """RMS norm whose weight is stored as its distance from 1, multiplied in float32 (Gemma)."""

    def __init__(self, width: Width, eps: float = 1e-6, bias: bool = False) -> None:
        super().__init__(width, eps)
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return (self.normalize(hidden_states) * (1.0 + self.weight.float())).to(hidden_states.dtype)


class MoebaNonParametricRMSNorm(MoebaRMSNorm):
    """RMS norm without a weight (nanochat)."""

    def __init__(self, width: Width, eps: float = 1e-6, bias: bool = False) -> None:
        super().__init__(width, eps)
        self.register_parameter("weight", None)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.normalize(hidden_states).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"eps={self.variance_epsilon}"


class MoebaLayerNorm(nn.LayerNorm):
    """Layer norm with a weight and, if asked for, a bias (Ba et al. 2016)."""

    def __init__(self, width: int, eps: float, bias: bool = True) -> None:
        super().__init__(width, eps=eps, bias=bias)


class MoebaFloat32LayerNorm(nn.Module):
    """Layer norm without a bias, weighted in float32 before it rounds (Cohere)."""

    def __init__(self, width: Width, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        centred = hidden_states - hidden_states.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        normed = centred * torch.rsqrt(variance + self.variance_epsilon)
        return (self.weight.to(torch.float32) * normed).to(dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


class MoebaUnitOffsetLayerNorm(MoebaLayerNorm):
    """Layer norm whose weight is stored as its distance from 1 (Nemotron's LayerNorm1P)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(hidden_states, self.normalized_shape, self.weight + 1.0, self.bias, self.eps)


class MoebaPerHeadLayerNorm(MoebaLayerNorm):
    """A layer norm of its own for each head of `[..., heads, head_dim]` (StableLM), rounded once like any other."""

    def __init__(self, width: tuple[int, int], eps: float, bias: bool = True) -> None:
        super().__init__(width[-1], eps=eps, bias=bias)
        self.weight = nn.Parameter(torch.ones(width))
        if bias:
            self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = (
            F.layer_norm(hidden_states.float(), self.normalized_shape, eps=self.eps) * self.weight.float()
        )
        normed = normed if self.bias is None else normed + self.bias.float()
        return normed.to(hidden_states.dtype)


class MoebaNonParametricLayerNorm(nn.LayerNorm):
    """Layer norm without weight or bias, computed in float32 (OLMo)."""

    def __init__(self, width: Width, eps: float, bias: bool = False) -> None:
        super().__init__(width, eps=eps, elementwise_affine=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.float()).to(hidden_states.dtype)


NORMS: dict[str, type[nn.Module]] = {
    "rmsnorm": MoebaRMSNorm,
    "rmsnorm_float32": MoebaFloat32RMSNorm,
    "rmsnorm_unit_offset": MoebaUnitOffsetRMSNorm,
    "rmsnorm_nonparametric": MoebaNonParametricRMSNorm,
    "layernorm": MoebaLayerNorm,
    "layernorm_float32": MoebaFloat32LayerNorm,
    "layernorm_unit_offset": MoebaUnitOffsetLayerNorm,
    "layernorm_nonparametric": MoebaNonParametricLayerNorm,
}


def build_norm(config: MoebaConfig, width: int | None = None) -> nn.Module:
    """The config's norm over a last dimension of `width` (default `hidden_size`)."""
    return NORMS[config.norm_type](width or config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def build_inner_norm(config: MoebaConfig, width: Width) -> nn.Module:
    """The norm of queries, keys and latents, over a last dimension or over the last of two."""
    norm = NORMS[config.qk_norm_type]
    if isinstance(width, tuple) and norm is MoebaLayerNorm:
        norm = MoebaPerHeadLayerNorm
    return norm(width, eps=config.qk_norm_eps, bias=config.qk_norm_bias)

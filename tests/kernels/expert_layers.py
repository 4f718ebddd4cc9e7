"""Small experts layers of every layout, and what they must answer: every expert on every token, in float64."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations import use_experts_implementation

ALPHA, LIMIT = 1.702, 1.5
Formula = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Gate and up to the gated activation, in words of their own: the kernels' formulas are what is tested.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": lambda g: g * torch.sigmoid(g),
    "gelu": lambda g: g * 0.5 * (1 + torch.erf(g / 2**0.5)),
    "gelu_tanh": lambda g: F.gelu(g, approximate="tanh"),
    "relu": lambda g: g.clamp(min=0),
    "relu2": lambda g: g.clamp(min=0) ** 2,
    "tanh": torch.tanh,  # no kernel knows this one
}


def _clamped(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
    return (up + 1) * gate * torch.sigmoid(ALPHA * gate)


def _limited_silu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate.clamp(max=LIMIT)) * up.clamp(-LIMIT, LIMIT)


FORMULAS: dict[str, Formula] = {"clamped": _clamped, "limited_silu": _limited_silu}


class Layer(nn.Module):
    """An experts module like those of transformers, without a forward of its own: see `make_layer`."""

    alpha, limit = ALPHA, LIMIT
    kind = "silu"
    is_concatenated: bool

    def __init__(self, config: Any, inner_rows: int) -> None:
        super().__init__()
        self.num_experts = config.experts
        inner = (config.experts, inner_rows, config.hidden)
        down = (config.experts, config.hidden, config.width)
        name = "gate_up_proj" if config.gated else "up_proj"
        for key, shape in ((name, inner), ("down_proj", down)):
            stored = (shape[0], shape[2], shape[1]) if config.transposed else shape
            self.register_parameter(key, nn.Parameter(torch.empty(stored)))
            if config.bias:
                self.register_parameter(f"{key}_bias", nn.Parameter(torch.empty(shape[:2])))
        if config.norm:
            self.post_expert_norm = nn.RMSNorm(config.hidden, eps=1e-6)

    def _apply_gate(self, inner: torch.Tensor) -> torch.Tensor:
        gate, up = inner.chunk(2, -1) if self.is_concatenated else (inner[..., ::2], inner[..., 1::2])
        return FORMULAS[self.kind](gate, up) if self.kind in FORMULAS else self.act_fn(gate) * up

    def forward(self, *_: Any) -> torch.Tensor:
        raise AssertionError("tests call the experts interface")


@functools.cache
def _class(gated: bool, interleaved: bool, transposed: bool, bias: bool, norm: bool) -> type[Layer]:
    return use_experts_implementation(
        type("Layer", (Layer,), {"__init__": Layer.__init__}),
        has_gate=gated,
        is_concatenated=not interleaved,
        is_transposed=transposed,
        has_bias=bias,
        has_post_expert_norm=norm,
    )


def make_layer(
    kind: str = "silu",
    *,
    experts: int = 5,
    hidden: int = 33,
    width: int = 17,
    gated: bool = True,
    interleaved: bool = False,
    transposed: bool = False,
    bias: bool = False,
    norm: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Layer:
    """Experts whose every number is random, large enough that each gate is bent."""
    config = SimpleNamespace(
        experts=experts,
        hidden=hidden,
        width=width,
        gated=gated,
        transposed=transposed,
        bias=bias,
        norm=norm,
        _experts_implementation="moeba",
    )
    layer = _class(gated, interleaved, transposed, bias, norm)(config, width * (1 + gated))
    layer.kind, layer.act_fn = kind, ACTIVATIONS.get(kind)
    return fill(layer, seed).to(dtype)


@torch.no_grad()
def fill(layer: nn.Module, seed: int = 0) -> Any:
    """Random numbers in every parameter, so that inner products are about 1.5."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter.shape[1 if getattr(layer, "is_transposed", False) else -1]
        parameter.copy_(noise * 1.5 * fan_in**-0.5 if parameter.dim() == 3 else 1 + 0.5 * noise)
    return layer


class Inputs(NamedTuple):
    """`hidden` `[tokens, hidden]`, `index` and `weights` `[tokens, top_k]`, and the gradient of the output."""

    hidden: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    change: torch.Tensor


def make_inputs(
    tokens: int = 11,
    top_k: int = 2,
    *,
    experts: int = 5,
    hidden: int = 33,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
) -> Inputs:
    """Each token with `top_k` different experts."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(tokens, experts, generator=generator).topk(top_k).indices
    weights = 0.1 + torch.rand(tokens, top_k, generator=generator)
    x, change = (torch.randn(tokens, hidden, generator=generator).to(dtype) for _ in range(2))
    return Inputs(x, index, weights.to(dtype), change)


def run(layer: nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    """The layer's output and every gradient, by name."""
    hidden, weights = inputs.hidden.detach().requires_grad_(), inputs.weights.detach().requires_grad_()
    layer.zero_grad()
    output = layer(hidden, inputs.index, weights)
    output.backward(inputs.change.to(output.dtype))
    assert output.dtype == inputs.hidden.dtype and output.shape == inputs.hidden.shape
    return {"output": output.detach(), "hidden": hidden.grad, "weights": weights.grad} | gradients(layer)


def gradients(layer: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in layer.named_parameters()}


@torch.enable_grad()
def exact(layer: nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    """What `run` must find, in float64."""
    wide = copy.deepcopy(layer).double()
    wide.zero_grad()
    hidden = inputs.hidden.detach().double().requires_grad_()
    weights = inputs.weights.detach().double().requires_grad_()
    output = every_expert(wide, hidden, inputs.index, weights)
    output.backward(inputs.change.double())
    return {"output": output.detach(), "hidden": hidden.grad, "weights": weights.grad} | gradients(wide)


def every_expert(
    layer: nn.Module, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`sum of weight * expert(token)` with every expert asked about every token; sentinels weigh nothing."""
    name = "gate_up_proj" if layer.has_gate else "up_proj"
    product = "th,ehr->etr" if layer.is_transposed else "th,erh->etr"
    inner = torch.einsum(product, hidden, getattr(layer, name))
    if layer.has_bias:
        inner = inner + getattr(layer, f"{name}_bias")[:, None]
    act = layer._apply_gate(inner) if layer.has_gate else layer.act_fn(inner)
    answers = torch.einsum("etw,ewh->eth" if layer.is_transposed else "etw,ehw->eth", act, layer.down_proj)
    if layer.has_bias:
        answers = answers + layer.down_proj_bias[:, None]
    if layer.has_post_expert_norm:
        answers = layer.post_expert_norm(answers)
    chosen = F.one_hot(index.long().clamp(max=layer.num_experts), layer.num_experts + 1)[..., :-1]
    share = (weights[..., None] * chosen).sum(1)  # [tokens, experts]
    return torch.einsum("te,eth->th", share, answers)


def difference(found: torch.Tensor, wanted: torch.Tensor, floor: float = 0.0) -> float:
    """The largest difference, in units of the largest number that was wanted, or of `floor` if that is larger."""
    if not wanted.numel():
        return 0.0
    scale = max(wanted.double().abs().max().item(), floor)
    return (found.double() - wanted.double()).abs().max().item() / (scale or 1.0)


def assert_same(
    found: Mapping[str, torch.Tensor | None],
    wanted: Mapping[str, torch.Tensor | None],
    tolerance: float = 5e-6,
    floor: float = 0.0,
) -> None:
    """Every tensor that was wanted was found, and no other, each to within `tolerance` of its `difference`."""
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        other = found[name]
        assert (other is None) == (tensor is None), name
        if tensor is None:
            continue
        assert other.shape == tensor.shape, name
        gap = difference(other, tensor, floor)
        assert gap <= tolerance, f"{name} differs by {gap:.2e} of its scale"

"""What the kernels know of one layer of experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..library.torch_internals import own_parameters
from ..library.upstream import ExpertsModule
from .gates import Gate, gate_of


@dataclass(slots=True)
class ExpertsLayer:
    """Tensors, layout and gate of an experts module.

    `inner` is `[experts, inner rows, hidden]` and `down` `[experts, hidden, width]`, or with the last two dimensions
    exchanged if `transposed`; inner rows are twice the width (gate and up) where the gate is gated. Biases are
    `[experts, inner rows]` and `[experts, hidden]`. `gate` is None if no kernel knows it.
    """

    module: ExpertsModule
    inner: torch.Tensor
    down: torch.Tensor
    inner_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    gate: Gate | None
    transposed: bool

    @property
    def num_experts(self) -> int:
        return self.inner.shape[0]

    @property
    def weights(self) -> list[torch.Tensor]:
        """Every tensor that the layer has."""
        tensors = (self.inner, self.down, self.inner_bias, self.down_bias)
        return [tensor for tensor in tensors if tensor is not None]


def foreign_type(*tensors: torch.Tensor) -> str | None:
    """The name of a tensor subclass among them (sharded, quantised …), whose memory is not what it seems."""
    types = {type(tensor) for tensor in tensors} - {torch.Tensor, nn.Parameter}
    return next((found.__name__ for found in types), None)


def layer_of(module: ExpertsModule) -> ExpertsLayer:
    """Describe a module that transformers' `use_experts_implementation` has decorated."""
    inner = "gate_up_proj" if module.has_gate else "up_proj"
    return ExpertsLayer(
        module=module,
        inner=_tensor(module, inner),
        down=_tensor(module, "down_proj"),
        inner_bias=_tensor(module, f"{inner}_bias") if module.has_bias else None,
        down_bias=_tensor(module, "down_proj_bias") if module.has_bias else None,
        gate=gate_of(module),
        transposed=module.is_transposed,
    )


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    # A module's own lookup takes five times as long; what is not a plain parameter (parametrised, adapted) needs it.
    found = own_parameters(module).get(name)
    return getattr(module, name) if found is None else found

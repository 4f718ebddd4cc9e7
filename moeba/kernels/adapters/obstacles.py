"""What keeps a call of adapted experts from being grouped. Each reason ends the sentence "…, because"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...library.peft_internals import ParamWrapper, holds_matrices_transposed
from ...library.torch_internals import has_hooks, weight_of
from ...library.upstream import ExpertsModule
from ..layer import foreign_type

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def parameter_names(experts: ExpertsModule) -> tuple[str, str]:
    """Of the matrices before the gate and after it."""
    return "gate_up_proj" if experts.has_gate else "up_proj", "down_proj"


def obstacle(
    wrappers: Sequence[ParamWrapper], experts: ExpertsModule, x: torch.Tensor, others: Sequence[Any]
) -> str | None:
    """Why PEFT's own path must run, or None. `others` are the arguments after `x`."""
    return _of_call(x, others) or _of_modules(wrappers, experts) or _of_tensors(wrappers, experts, x.device)


def _of_call(x: torch.Tensor, others: Sequence[Any]) -> str | None:
    if len(others) != 2 or x.dim() != 2 or any(other.dim() != 2 for other in others):
        return "experts are not called with tokens, index and weights"
    if x.device.type != "cpu" and not (x.device.type == "cuda" and hasattr(F, "grouped_mm")):
        return f"this PyTorch has no grouped product on {x.device.type}"
    return None


def _of_modules(wrappers: Sequence[ParamWrapper], experts: ExpertsModule) -> str | None:
    for wrapper in wrappers:
        if wrapper.parameter_name not in parameter_names(experts):
            return f"{wrapper.parameter_name} is adapted, which is no matrix of experts"
        if wrapper.disable_adapters:
            return "only some of the adapters are disabled"
        if wrapper.lora_variant or not all(isinstance(m, nn.Identity) for m in wrapper.lora_dropout.values()):
            return f"the adapters of {wrapper.parameter_name} are not plain LoRA"
        if holds_matrices_transposed(wrapper) == experts.is_transposed:
            return "PEFT holds the adapters' matrices the other way round"
    if experts.is_transposed and wrappers[0].num_experts == 1:
        return "PEFT takes the matrix of a single expert for one that is not transposed"
    if hasattr(experts, "parametrizations"):
        return "the experts' tensors are parametrised"
    # Grouping calls neither the wrappers inside nor the experts module: nothing may wait for such a call.
    for module in (*wrappers[1:], experts):
        if has_hooks(module) or "forward" in vars(module):
            return f"{type(module).__name__} has hooks or a forward of its own"
    return None


def _of_tensors(wrappers: Sequence[ParamWrapper], experts: ExpertsModule, device: torch.device) -> str | None:
    stored = [p for name in parameter_names(experts) for p in (name, f"{name}_bias")]
    weights = [getattr(experts, name) for name in (stored if experts.has_bias else stored[::2])]
    dtype = weights[0].dtype
    if dtype not in _DTYPES or any(tensor.dtype != dtype for tensor in weights):
        return f"the experts' weights are {' and '.join(sorted({str(w.dtype) for w in weights}))}"
    factors = [
        weight_of(matrices[name])
        for wrapper in wrappers
        for name in wrapper.active_adapters
        for matrices in (wrapper.lora_A, wrapper.lora_B)
        if name in matrices
    ]
    if (foreign := foreign_type(*weights, *factors)) is not None:
        return f"a weight is of type {foreign}"
    for tensor in (*weights, *factors):
        if tensor.device != device:
            return f"a weight is on {tensor.device} and the tokens are on {device}"
    return _of_grouped_mm(wrappers, dtype) if device.type == "cuda" else None


def _of_grouped_mm(wrappers: Sequence[ParamWrapper], dtype: torch.dtype) -> str | None:
    """What torch's grouped product on a GPU wants: no float64, and rows of a multiple of 16 bytes."""
    if dtype == torch.float64:
        return "torch's grouped product takes no float64"
    for wrapper in wrappers:
        rank = sum(wrapper.r[name] for name in wrapper.active_adapters if name in wrapper.r)
        if rank * dtype.itemsize % 16:
            return f"adapters of rank {rank} in {dtype} have rows that are no multiple of 16 bytes"
    return None

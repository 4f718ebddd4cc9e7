"""PEFT's wrappers of experts, made to run on the tokens that visit each expert.

LoRA on 3-D parameters (`LoraConfig(target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])`) puts one
`ParamWrapper` around the experts module for each parameter, and each of them replaces its parameter by `W + B A` of all
experts for the length of a call. Here the outermost wrapper of an experts module becomes one that leaves the
parameters alone and adds `B (A x)` to the products of the tokens instead. It is the same module with the same
children and tensors, so whatever PEFT reads, writes, switches, merges or adds stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ...library.peft_internals import ParamWrapper as PeftParamWrapper
from ...library.torch_internals import weight_of
from ...library.upstream import is_experts, logging
from ..layer import ExpertsLayer, layer_of
from . import composed, frozen
from .low_rank import Adapters, LowRank
from .obstacles import obstacle as _obstacle
from .obstacles import parameter_names

logger = logging.get_logger(__name__)


def group_adapters(model: nn.Module) -> list[str]:
    """Let LoRA adapters of experts run on the tokens that visit each expert, not as PEFT's `W + B A` of all experts.

    This call is the switch, whatever `experts_implementation` the model has: that one still computes wherever no
    adapter is active. Call it after `get_peft_model` or `PeftModel.from_pretrained`; adapters that are added later are
    grouped as well. Where a call cannot be grouped it runs on PEFT's own path, which the log says once.

    Args:
        model: a model with LoRA adapters on `gate_up_proj` (`up_proj`) or `down_proj` of experts modules that use
            transformers' experts interface. It is changed in place.

    Returns:
        Names of the experts modules' outermost wrappers that are grouped now.

    Raises:
        ValueError: no experts module has such an adapter.
    """
    ungroup_adapters(model)
    found = {
        name: wrapper for name, wrapper in _outermost(model).items() if is_experts(wrapper.get_base_layer())
    }
    if not found:
        raise ValueError(
            "found no LoRA adapter of experts to group: name their tensors in LoraConfig(target_parameters=[...]), "
            'such as "mlp.experts.gate_up_proj" and "mlp.experts.down_proj"'
        )
    for wrapper in found.values():
        wrapper.__class__ = ParamWrapper
    return list(found)


def ungroup_adapters(model: nn.Module) -> None:
    """Give experts' adapters back to PEFT's own path; without any this does nothing."""
    grouped: list[PeftParamWrapper] = [module for module in model.modules() if type(module) is ParamWrapper]
    for wrapper in grouped:
        wrapper.__class__ = PeftParamWrapper


class ParamWrapper(PeftParamWrapper):
    """The outermost wrapper of an experts module. PEFT looks for its wrappers by this class name as well."""

    @torch.compiler.disable  # sizes of shares depend on data: a compiled model breaks its graph here
    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the experts module: `x` `[tokens, hidden]`, then index and weights `[tokens, top_k]`."""
        wrappers = list(_chain(self))
        if kwargs or not any(_active(wrapper) for wrapper in wrappers):
            return super().forward(x, *args, **kwargs)
        experts = self.get_base_layer()
        assert is_experts(experts)  # or it is not grouped
        reason = _obstacle(wrappers, experts, x, args)
        if reason is not None:
            logger.warning_once(
                f"{type(experts).__name__}: adapters run on PEFT's own path, which computes the matrices of all "
                f"experts at each step, because {reason}."
            )
            return super().forward(x, *args)
        adapters = {wrapper.parameter_name: _low_rank(wrapper) for wrapper in wrappers}
        inner, down = map(adapters.get, parameter_names(experts))
        # As in transformers' grouped products, the weights' dtype is that of the products, autocast or not.
        with torch.autocast(x.device.type, enabled=False):
            return _run(layer_of(experts), Adapters(inner, down), x, *args)


def _run(
    layer: ExpertsLayer, adapters: Adapters, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    if x.device.type != "cpu":
        adapters = adapters.to(layer.inner.dtype)
        return composed.run(layer, adapters, x, index, weights, composed.OnDevice)
    path = composed if frozen.obstacle(layer) else frozen
    return path.run(layer, adapters, x, index, weights)


def _outermost(model: nn.Module) -> dict[str, PeftParamWrapper]:
    wrappers = {
        name: module for name, module in model.named_modules() if isinstance(module, PeftParamWrapper)
    }
    nested = {id(wrapper.base_layer) for wrapper in wrappers.values()}
    return {name: wrapper for name, wrapper in wrappers.items() if id(wrapper) not in nested}


def _chain(wrapper: nn.Module) -> Iterator[PeftParamWrapper]:
    """A wrapper and those inside it, down to the experts module."""
    while isinstance(wrapper, PeftParamWrapper):
        yield wrapper
        wrapper = wrapper.base_layer


def _active(wrapper: PeftParamWrapper) -> list[str]:
    """Adapters that a wrapper would add at this call."""
    if wrapper.disable_adapters or wrapper.merged:
        return []
    return [name for name in wrapper.active_adapters if name in wrapper.lora_A]


def _low_rank(wrapper: PeftParamWrapper) -> LowRank | None:
    """All active adapters of one parameter."""
    return LowRank.total(
        [
            LowRank.of(
                weight_of(wrapper.lora_A[name]),
                weight_of(wrapper.lora_B[name]),
                wrapper.num_experts,
                wrapper.scaling[name],
            )
            for name in _active(wrapper)
        ]
    )

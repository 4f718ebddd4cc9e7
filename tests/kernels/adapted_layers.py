"""Small experts layers with LoRA adapters, as PEFT makes them."""

from __future__ import annotations

from typing import Any

import peft
import torch
from torch import nn

SIZES: dict[str, Any] = dict(experts=6, hidden=32, width=16)


def parameters_of(layer: nn.Module) -> tuple[str, str]:
    return "gate_up_proj" if layer.has_gate else "up_proj", "down_proj"


def lora_config(layer: nn.Module, only: int | None = None, **options: Any) -> peft.LoraConfig:
    """Adapters on both matrices, or on the first or second `only`."""
    names = [f"experts.{name}" for name in parameters_of(layer)]
    targets = names if only is None else [names[only]]
    given = {"r": 4, "lora_alpha": 6, "target_modules": [], "init_lora_weights": False, **options}
    return peft.LoraConfig(target_parameters=targets, **given)


def adapt(
    layer: nn.Module, only: int | None = None, implementation: str = "batched_mm", **options: Any
) -> Any:
    """A PEFT model of one layer with random adapters, which PEFT runs on one of stock's implementations."""
    layer.config._experts_implementation = implementation
    torch.manual_seed(7)
    keep = options.pop("autocast_adapter_dtype", True)
    model = nn.ModuleDict({"experts": layer})
    return peft.get_peft_model(model, lora_config(layer, only, **options), autocast_adapter_dtype=keep)


def experts_of(model: Any) -> nn.Module:
    """The outermost wrapper, which is called as the experts are."""
    return model.base_model.model["experts"]

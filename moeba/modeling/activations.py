"""Activations: transformers' functions by name, and those of them that have parameters of their own."""

from __future__ import annotations

import torch
from torch import nn

from ..library.upstream import ACT2CLS, ACT2FN


def build_activation(name: str) -> nn.Module:
    """The activation of this name; a learned one has its parameters in the dtype of the model being built."""
    if name == "xielu":  # whose own default is bfloat16
        return ACT2CLS[name](dtype=torch.get_default_dtype())  # type: ignore[operator]  # some entries are pairs
    return ACT2FN[name]

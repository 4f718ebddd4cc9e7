"""Experts on the GPU, in Triton: grouped products with gather, gate and scatter inside, forward and backward.

Experimental: compiled for compute capability 8.0 and 9.0 and proven in Triton's interpreter, but no GPU has run them
yet. Nothing chooses them by itself: `experts_implementation="moeba"` does, on a CUDA device.

Importing this package imports no Triton. Kernels are loaded at the first `run`, and run in Triton's interpreter on CPU
tensors if `TRITON_INTERPRET=1` is set by then.
"""

from __future__ import annotations

import torch

from ..layer import ExpertsLayer, foreign_type
from .availability import WHY_NOT, interpreting
from .settings import Settings, settings

__all__ = ["Settings", "obstacle", "run", "settings"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def obstacle(layer: ExpertsLayer, hidden: torch.Tensor) -> str | None:
    """Why these kernels cannot answer for the layer, or None if they can."""
    if WHY_NOT:
        return WHY_NOT
    if layer.gate is None:
        return "its gate is none that the kernels know"
    tensors = [hidden, *layer.weights]
    if foreign_type(*tensors) is not None:
        return "its tensors are not plain tensors"
    if any(tensor.dtype not in _DTYPES for tensor in tensors):
        return "its numbers are neither float32 nor bfloat16 nor float16"
    if any(tensor.device != hidden.device for tensor in tensors):
        return "its tensors lie on several devices"
    if hidden.device.type == "cuda":
        if torch.version.cuda is None or torch.cuda.get_device_capability(hidden.device) < (8, 0):
            return "the device is older than the kernels ask for (compute capability 8.0)"
    elif not (hidden.device.type == "cpu" and interpreting()):
        return "its tensors are not on a CUDA device"
    return None


def run(
    layer: ExpertsLayer, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The layer's answer, `[tokens, hidden]` in hidden's dtype, for a layer without an `obstacle`.

    Products are computed in the weights' dtype and accumulate in float32. An index outside of the experts contributes
    nothing and gets no gradient. Deterministic, forward and backward; a second derivative is refused.

    Args:
        hidden: `[tokens, hidden]`. index, weights: `[tokens, top_k]`.
    """
    from .experts import run as run_kernels

    return run_kernels(layer, hidden, index, weights)

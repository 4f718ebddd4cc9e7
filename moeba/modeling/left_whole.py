"""What a way of loading leaves as it was although its user may think otherwise: said once, when a model is loaded."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..configuration.parallel_plans import whole_under_tensor_parallelism
from ..library.upstream import logging
from .experts import Experts

logger = logging.get_logger(__name__)

# As torchao's configs write a pattern for the names of parameters.
EXPERTS_BY_NAME = r"re:.*experts\.(gate_up|up|down)_proj"


def say_what_stays_whole(model: Any) -> None:
    """Warn where a quantiser took linear layers only, and where tensor parallelism divides little."""
    if (share := unquantised_share(model)) > 0:
        logger.warning_once(
            f"The quantiser takes linear layers only: {share:.0%} of the parameters, the experts', stay in "
            f"{model.dtype}. Engines quantise experts of native checkpoints (moeba export, then quantise there); "
            f"torchao takes them by name, in a FqnToConfig: {EXPERTS_BY_NAME!r}."
        )
    if (model.tp_size or 1) > 1 and (whole := whole_under_tensor_parallelism(model.config)):
        logger.warning_once(f"Tensor parallelism leaves whole on every device: {whole}.")


def unquantised_share(model: Any) -> float:
    """The share of its parameters that a quantised model keeps as plain numbers in experts; 0 of any other model."""
    if getattr(model, "hf_quantizer", None) is None:
        return 0.0
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    plain = sum(
        parameter.numel()
        for module in experts
        for parameter in module.parameters()
        if type(parameter) is nn.Parameter and parameter.is_floating_point()
    )
    return plain / model.config.num_params()


__all__ = ["say_what_stays_whole", "unquantised_share"]

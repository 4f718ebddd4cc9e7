"""Planted faults that act in half precision alone: one rounding more, fewer or elsewhere."""

from __future__ import annotations

import torch

from ...configuration import MoebaConfig
from ...modeling import MoebaForCausalLM
from ..config_differences import is_idle
from .fault import Fault, layers_of

_OTHER_ORDER = {"rmsnorm": "rmsnorm_float32", "rmsnorm_float32": "rmsnorm"}
# Of a rounding error, what a multiplier must be off for its rounding to move more values than a comparison allows.
_LEAST = 0.25


def rounding_faults(model: MoebaForCausalLM) -> list[Fault]:
    """Those that a model in half precision can have."""
    return [
        fault for fault in ROUNDING_FAULTS if fault.applies(model.config) and fault.finds_something(model)
    ]


def _off_by_one_rounding(model: MoebaForCausalLM) -> None:
    layer = layers_of(model)[0]
    weight = getattr(layer, layer.norm_names[0]).weight
    weight.mul_(1 + torch.finfo(weight.dtype).eps)


def _rounding_matters(model: MoebaForCausalLM) -> bool:
    """Whether the factor on the embeddings is not itself a number of the model's dtype."""
    factor, eps = model.config.embedding_multiplier, torch.finfo(model.dtype).eps
    rounded = torch.tensor(factor, dtype=model.dtype).item()
    return abs(rounded - factor) > _LEAST * eps / 2 * factor


def _router_in_half(model: MoebaForCausalLM) -> bool:
    first = layers_of(model)[model.config.sparse_layers[0]].mlp.gate
    return first.weight.dtype == model.dtype


def _other_product(config: MoebaConfig) -> dict[str, str]:
    return {"router_matmul_dtype": "float32" if config.router_matmul_dtype == "model" else "model"}


ROUNDING_FAULTS: tuple[Fault, ...] = (
    Fault("weights of a norm off by one rounding", lambda c: not c.norm_type.endswith("nonparametric"),
          _off_by_one_rounding),
    Fault("norms rounded before and after their weight exchanged", lambda c: c.norm_type in _OTHER_ORDER,
          config=lambda c: {"norm_type": _OTHER_ORDER[c.norm_type]}),
    Fault("rounding of the embedding multiplier flipped",
          lambda c: not is_idle(c, "round_embedding_multiplier"),
          config=lambda c: {"round_embedding_multiplier": not c.round_embedding_multiplier},
          finds_something=_rounding_matters),
    Fault("router's product in another precision", lambda c: bool(c.sparse_layers),
          config=_other_product, finds_something=_router_in_half),
)  # fmt: skip

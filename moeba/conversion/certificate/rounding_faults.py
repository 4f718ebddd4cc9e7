"""Planted faults that act in half precision alone: one rounding more, fewer or elsewhere."""

from __future__ import annotations

import torch

from ...modeling import MoebaForCausalLM
from .fault import Fault, layers_of, of_fields

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
    return bool(first.weight.dtype == model.dtype)


# Fields that change roundings only where a model has what they round.
_VISIBLE = {"round_embedding_multiplier": _rounding_matters, "router_matmul_dtype": _router_in_half}

ROUNDING_FAULTS: tuple[Fault, ...] = (
    Fault("weights of a norm off by one rounding", lambda c: not c.norm_type.endswith("nonparametric"),
          _off_by_one_rounding),
    *of_fields("half", _VISIBLE),
)  # fmt: skip

"""What a planted fault is, and the damage that many of them do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ...configuration import MoebaConfig
from ...configuration.fields import WrongValue
from ...configuration.schema import is_idle, wrong_values
from ...library.upstream import run_like
from ...modeling import MoebaForCausalLM

Finds = Callable[[MoebaForCausalLM], bool]


def _always(model: MoebaForCausalLM) -> bool:
    return True


@dataclass(frozen=True)
class Fault:
    """A name, where it applies, and what it does: `edit` changes weights in place, `config` gives changed fields.

    With `distinct_experts` it changes nothing in a model whose experts are still copies of each other.
    `finds_something` says of a model whether what would be damaged is there at all.
    """

    name: str
    applies: Callable[[MoebaConfig], bool]
    edit: Callable[[MoebaForCausalLM], None] | None = None
    config: Callable[[MoebaConfig], dict[str, Any]] | None = None
    distinct_experts: bool = False
    finds_something: Finds = _always

    def plant(self, model: MoebaForCausalLM) -> MoebaForCausalLM:
        """A damaged copy of the model."""
        if self.config is not None:
            return with_config(model, self.config(model.config))
        damaged = copy.deepcopy(model)
        assert self.edit is not None
        with torch.no_grad():
            self.edit(damaged)
        return damaged


def of_fields(seen: str, finds_something: Mapping[str, Finds] | None = None) -> tuple[Fault, ...]:
    """The wrong values that fields themselves name, wherever they act.

    Args:
        seen: where they show; see `WrongValue`.
        finds_something: by field, what a model must have.
    """

    def fault(name: str, wrong: WrongValue) -> Fault:
        def applies(config: MoebaConfig) -> bool:
            return not is_idle(config, name) and wrong.shows(config)

        found = (finds_something or {}).get(name, _always)
        return Fault(wrong.name, applies, None, wrong.change, wrong.distinct_experts, found)

    return tuple(fault(name, wrong) for name, wrong in wrong_values() if wrong.seen == seen)


def with_config(model: MoebaForCausalLM, changes: dict[str, Any]) -> MoebaForCausalLM:
    """The same weights under a config with other values."""
    values = copy.deepcopy(model.config.to_dict())
    values.update(changes)
    config = MoebaConfig.from_dict(values)
    run_like(config, model.config)
    damaged: MoebaForCausalLM = AutoModelForCausalLM.from_config(config, dtype=model.dtype).eval()
    run_like(damaged.config, model.config)
    state = {name: value for name, value in model.state_dict().items() if name in damaged.state_dict()}
    damaged.load_state_dict(state, strict=False)
    return damaged


def layers_of(model: MoebaForCausalLM) -> Any:
    return model.model.layers


def swap(a: torch.Tensor, b: torch.Tensor) -> None:
    kept = a.clone()
    a.copy_(b)
    b.copy_(kept)


def roll(weight: torch.Tensor, dim: int = 0) -> None:
    weight.copy_(weight.roll(1, dims=dim))


def zero(vector: torch.Tensor) -> None:
    vector.zero_()

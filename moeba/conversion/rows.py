"""Weight rows: which tensors of a native checkpoint are which tensors of Moeba, said once for both directions.

A row lists names on both sides and the operations that lead from theirs to ours; each operation knows its inverse, so
the way back is never written down. `{layer}` in a name stands for each layer, `{expert}` for each expert of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..configuration import MoebaConfig
from ..configuration.model_facts import layer_view

Tensors = list[torch.Tensor]


class Operation(Protocol):
    """An invertible step between lists of tensors. It must work on meta tensors too: plans infer shapes with it."""

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors: ...

    def to_theirs(self, tensors: Tensors, config: MoebaConfig) -> Tensors: ...


@dataclass(frozen=True)
class Transpose:
    """Swap the two dimensions of each matrix (GPT-2 stores `[in, out]`); vectors stay."""

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [tensor.T if tensor.dim() == 2 else tensor for tensor in tensors]

    to_theirs = to_ours


@dataclass(frozen=True)
class Split:
    """Cut one tensor along dimension 0 into the parts of a fused projection; the way back concatenates them."""

    sizes: Callable[[MoebaConfig], Sequence[int]]

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        (fused,) = tensors
        return list(torch.split(fused, list(self.sizes(config)), dim=0))

    def to_theirs(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [torch.cat(tensors, dim=0)]


@dataclass(frozen=True)
class StackExperts:
    """Stack the `{expert}` names of each pattern: patterns x experts tensors become one `[experts, ...]` a pattern."""

    patterns: int

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        experts = len(tensors) // self.patterns
        return [torch.stack(tensors[i * experts : (i + 1) * experts]) for i in range(self.patterns)]

    def to_theirs(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [expert for stacked in tensors for expert in stacked.unbind(0)]


@dataclass(frozen=True)
class FuseGateUp:
    """Concatenate `[experts, width, hidden]` gates and ups to `[experts, 2 * width, hidden]`."""

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [torch.cat(tensors, dim=1)]

    def to_theirs(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return list(tensors[0].chunk(2, dim=1))


@dataclass(frozen=True)
class Row:
    """Tensors that belong together. A row applies where all its names on our side exist in the model."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    operations: tuple[Operation, ...] = ()

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.ours[0]

    def our_names(self, layer: int) -> tuple[str, ...]:
        return tuple(name.replace("{layer}", str(layer)) for name in self.ours)

    def their_names(self, layer: int, config: MoebaConfig) -> tuple[str, ...]:
        """Pattern by pattern, and expert by expert in a pattern that has `{expert}`."""
        names: list[str] = []
        for pattern in self.theirs:
            name = pattern.replace("{layer}", str(layer))
            if "{expert}" in name:
                experts = layer_view(config, layer).num_experts
                names.extend(name.replace("{expert}", str(expert)) for expert in range(experts))
            else:
                names.append(name)
        return tuple(names)

    def to_ours(self, tensors: Sequence[torch.Tensor], config: MoebaConfig) -> Tensors:
        result = list(tensors)
        for operation in self.operations:
            result = operation.to_ours(result, config)
        return result

    def to_theirs(self, tensors: Sequence[torch.Tensor], config: MoebaConfig) -> Tensors:
        result = list(tensors)
        for operation in reversed(self.operations):
            result = operation.to_theirs(result, config)
        return result

    def describe(self) -> str:
        steps = ", ".join(type(operation).__name__ for operation in self.operations)
        return f"{' + '.join(self.ours)} <- {' + '.join(self.theirs)}" + (f"  ({steps})" if steps else "")


@dataclass(frozen=True)
class Dropped:
    """A source tensor that carries nothing: a mask or table that the code rebuilds."""

    pattern: str
    reason: str
    regex: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = re.escape(self.pattern).replace(re.escape("{layer}"), r"\d+")
        object.__setattr__(self, "regex", re.compile(text))


def same(*names: str) -> tuple[Row, ...]:
    """Rows for tensors that have the same name on both sides."""
    return tuple(Row((name,), (name,)) for name in names)


def renamed(theirs: str, ours: str, *operations: Operation) -> Row:
    """One tensor under another name."""
    return Row((theirs,), (ours,), operations)


def linear(theirs: str, ours: str, *operations: Operation) -> tuple[Row, Row]:
    """Weight and, where the model has one, bias of a projection or norm."""
    return tuple(renamed(f"{theirs}.{part}", f"{ours}.{part}", *operations) for part in ("weight", "bias"))  # type: ignore[return-value]

"""Weight rows: which tensors of a native checkpoint are which tensors of Moeba, said once for both directions.

A row lists names on both sides and the operations that lead from theirs to ours; each operation knows its inverse, so
the way back is never written down. `{layer}` in a name stands for each layer; `{expert}`, `{head}` and `{kv_head}`
stand for each of a layer's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..configuration import MoebaConfig
from ..configuration.model_facts import layer_view, rotated_width

Tensors = list[torch.Tensor]
Size = Callable[[MoebaConfig], int]

# What a name may enumerate within one layer, and which field counts it.
ENUMERATED = {"{expert}": "num_experts", "{head}": "num_attention_heads", "{kv_head}": "num_key_value_heads"}


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
class SplitGroups:
    """Cut a fused projection whose rows lie group by group: the queries of a key/value head, its key, its value.

    One query a group is the layout of GPT-NeoX and BLOOM; one group is that of multi-query models.
    """

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        (fused,) = tensors
        kv_heads, width = config.num_key_value_heads, config.head_dim
        queries = config.num_attention_heads // kv_heads
        grouped = fused.reshape(kv_heads, queries + 2, width, *fused.shape[1:])
        parts = grouped[:, :queries], grouped[:, queries], grouped[:, queries + 1]
        return [part.reshape(-1, *fused.shape[1:]) for part in parts]

    def to_theirs(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        kv_heads, width = config.num_key_value_heads, config.head_dim
        rest = tensors[0].shape[1:]
        grouped = torch.cat([part.reshape(kv_heads, -1, width, *rest) for part in tensors], dim=1)
        return [grouped.reshape(-1, *rest)]


@dataclass(frozen=True)
class PairsToHalves:
    """Reorder the rows that rope turns, from neighbours `(0, 1), (2, 3) ...` to halves `(0, d/2), (1, d/2 + 1) ...`.

    Attributes:
        width: rows of one head; by default all of it is `head_dim`.
        start: rows of a head before the turned ones.
        last: the entries of a head are the last dimension (a norm's weight), not rows.
    """

    width: Size = lambda config: config.head_dim
    start: Size = lambda config: 0
    last: bool = False

    def _reorder(self, tensor: torch.Tensor, config: MoebaConfig, back: bool) -> torch.Tensor:
        turned, start, width = rotated_width(config), self.start(config), self.width(config)
        order = list(range(start)) + [start + i for i in (*range(0, turned, 2), *range(1, turned, 2))]
        order += range(start + turned, width)
        index = torch.tensor(order, device=tensor.device)
        if back:
            index = torch.argsort(index) if tensor.device.type != "meta" else index
        shape = (-1, width) if self.last else (-1, width, *tensor.shape[1:])
        return tensor.reshape(shape).index_select(1, index).reshape(tensor.shape)

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [self._reorder(tensor, config, back=False) for tensor in tensors]

    def to_theirs(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [self._reorder(tensor, config, back=True) for tensor in tensors]


@dataclass(frozen=True)
class NegateSecondHalves:
    """Change the sign of the second half of the rows that rope turns in each head.

    It makes rope of one that turns backwards (nanochat), and leaves the products of queries and keys the same.
    """

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [self._negate(tensor, config) for tensor in tensors]

    to_theirs = to_ours

    @staticmethod
    def _negate(tensor: torch.Tensor, config: MoebaConfig) -> torch.Tensor:
        turned = rotated_width(config)
        heads = tensor.reshape(-1, config.head_dim, *tensor.shape[1:])
        first, second, rest = heads.tensor_split([turned // 2, turned], dim=1)
        return torch.cat((first, -second, rest), dim=1).reshape(tensor.shape)


@dataclass(frozen=True)
class SplitShards:
    """Cut a fused projection that lies shard by shard, each with its share of every part (CodeGen)."""

    shards: int
    parts: int

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        (fused,) = tensors
        rest = fused.shape[1:]
        return [
            part.reshape(-1, *rest) for part in fused.reshape(self.shards, self.parts, -1, *rest).unbind(1)
        ]

    def to_theirs(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        rest = tensors[0].shape[1:]
        shards = torch.stack([part.reshape(self.shards, -1, *rest) for part in tensors], dim=1)
        return [shards.reshape(-1, *rest)]


@dataclass(frozen=True)
class Each:
    """An operation of one tensor for each of several; None leaves a tensor as it is."""

    operations: tuple[Operation | None, ...]

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [
            tensor if operation is None else operation.to_ours([tensor], config)[0]
            for operation, tensor in zip(self.operations, tensors, strict=True)
        ]

    def to_theirs(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [
            tensor if operation is None else operation.to_theirs([tensor], config)[0]
            for operation, tensor in zip(self.operations, tensors, strict=True)
        ]


@dataclass(frozen=True)
class Reshape:
    """The same numbers in another shape (a bias stored with an extra dimension)."""

    ours: Callable[[MoebaConfig], tuple[int, ...]]
    theirs: Callable[[MoebaConfig], tuple[int, ...]]

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [tensor.reshape(self.ours(config)) for tensor in tensors]

    def to_theirs(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [tensor.reshape(self.theirs(config)) for tensor in tensors]


@dataclass(frozen=True)
class SwapLast:
    """Swap the last two dimensions: experts stored `[experts, in, out]`."""

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [tensor.transpose(-1, -2) for tensor in tensors]

    to_theirs = to_ours


@dataclass(frozen=True)
class UnpairGateUp:
    """Gates and ups that alternate along dimension 1 (GPT-OSS) become a half each."""

    def to_ours(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [torch.cat((tensor[:, ::2], tensor[:, 1::2]), dim=1) for tensor in tensors]

    def to_theirs(self, tensors: Tensors, config: MoebaConfig) -> Tensors:
        return [torch.stack(tensor.chunk(2, dim=1), dim=2).flatten(1, 2) for tensor in tensors]


@dataclass(frozen=True)
class StackExperts:
    """Stack what a pattern enumerates: patterns x experts tensors become one `[experts, ...]` a pattern."""

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
    """Tensors that belong together. A row applies where all its names on our side exist in the model.

    `when` says in which models it does, for a family that names one tensor of ours in several ways. `zero_if_absent`
    says that a source may leave its tensor out, a float32 buffer which the stock code then fills with zeros.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    operations: tuple[Operation, ...] = ()
    when: Callable[[MoebaConfig], bool] = lambda config: True
    zero_if_absent: bool = False

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.ours[0]

    def our_names(self, layer: int) -> tuple[str, ...]:
        return tuple(name.replace("{layer}", str(layer)) for name in self.ours)

    def their_names(self, layer: int, config: MoebaConfig) -> tuple[str, ...]:
        """Pattern by pattern, and one by one in a pattern that enumerates."""
        names: list[str] = []
        for pattern in self.theirs:
            name = pattern.replace("{layer}", str(layer))
            mark = next((mark for mark in ENUMERATED if mark in name), None)
            if mark is None:
                names.append(name)
            else:
                count = getattr(layer_view(config, layer), ENUMERATED[mark])
                names.extend(name.replace(mark, str(i)) for i in range(count))
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
    """A source tensor that carries nothing: a mask or table that the code rebuilds.

    In the pattern, `{layer}` is the number of any layer, `{beyond}` that of one past the model's last, and `{rest}` is
    whatever follows.
    """

    pattern: str
    reason: str
    regex: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = (
            re.escape(self.pattern).replace(re.escape("{layer}"), r"\d+").replace(re.escape("{rest}"), r".*")
        )
        text = text.replace(re.escape("{beyond}"), r"(?P<beyond>\d+)")
        object.__setattr__(self, "regex", re.compile(text))

    def matches(self, name: str, layers: int) -> bool:
        """Whether it drops this tensor from a model of so many layers."""
        found = self.regex.fullmatch(name)
        if found is None:
            return False
        beyond = found.groupdict().get("beyond")
        return beyond is None or int(beyond) >= layers


def same(*names: str) -> tuple[Row, ...]:
    """Rows for tensors that have the same name on both sides."""
    return tuple(Row((name,), (name,)) for name in names)


def renamed(theirs: str, ours: str, *operations: Operation) -> Row:
    """One tensor under another name."""
    return Row((theirs,), (ours,), operations)


def linear(theirs: str, ours: str, *operations: Operation) -> tuple[Row, Row]:
    """Weight and, where the model has one, bias of a projection or norm."""
    return tuple(renamed(f"{theirs}.{part}", f"{ours}.{part}", *operations) for part in ("weight", "bias"))  # type: ignore[return-value]

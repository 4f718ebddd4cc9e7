"""Whether the experts of a model are still copies of one feed-forward, and what its shared experts hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...configuration import MoebaConfig
from ...conversion.checkpoint import TensorSource
from .expert_rows import FEED_FORWARD, has_expert_rows


@dataclass(frozen=True)
class Likeness:
    """
    Attributes:
        unequal: layers whose experts are no copies of each other (or of each part of a whole).
        shared_is_zero: no shared expert answers anything.
        gate_is_zero: the gates before the shared experts have weights of zero: sigmoid makes them one half.
        shared_is_same: every shared expert has the very inner neurons that the experts have.
    """

    unequal: list[int]
    shared_is_zero: bool
    gate_is_zero: bool
    shared_is_same: bool


def look(config: MoebaConfig, tensors: TensorSource, granularity: int) -> Likeness:
    """Compare the experts of each sparse layer, bit for bit; one tensor in memory at a time."""
    layers = [_Layer(config, tensors, layer, granularity) for layer in config.sparse_layers]
    shared = [layer for layer in layers if layer.has("shared_expert.down_proj.weight")]
    return Likeness(
        unequal=[layer.index for layer in layers if not layer.is_equal()],
        gate_is_zero=not any(layer.is_anything("shared_expert_gate.weight") for layer in shared),
        shared_is_zero=all(layer.shared_is_zero() for layer in shared),
        shared_is_same=len(shared) == len(layers) and all(layer.shared_is_same() for layer in shared),
    )


@dataclass(frozen=True)
class _Layer:
    config: MoebaConfig
    tensors: TensorSource
    index: int
    granularity: int

    @property
    def prefix(self) -> str:
        return FEED_FORWARD.format(layer=self.index)

    def has(self, part: str) -> bool:
        return self.prefix + part in self.tensors.tensors

    def read(self, part: str) -> torch.Tensor:
        return self.tensors.read(self.prefix + part)

    def is_equal(self) -> bool:
        """Whether expert e is expert `e % granularity`, and the experts of one whole share what routes to them."""
        for name in self.tensors.tensors:
            part = name.removeprefix(self.prefix)
            if part == name or not has_expert_rows(part):
                continue
            routes = part.startswith("gate.")
            if routes and self.granularity == 1:
                continue  # whatever is chosen answers the same
            rows = self.read(part)
            for expert in range(len(rows)):
                place = expert % self.granularity
                if not torch.equal(rows[expert], rows[expert - place if routes else place]):
                    return False
        return True

    def shared_is_zero(self) -> bool:
        parts = [f"shared_expert.down_proj.{kind}" for kind in ("weight", "bias")]
        return not any(self.is_anything(part) for part in parts)

    def is_anything(self, part: str) -> bool:
        """Whether there is such a tensor, and not all of it is zero."""
        return self.has(part) and bool(self.read(part).any())

    def shared_is_same(self) -> bool:
        """Whether gate and up projection, put together from the first whole's parts, are the shared expert's."""
        if self.config.expert_bias != self.config.mlp_bias:
            return False
        names = ("up_proj",) if self.config.feed_forward_type == "mlp" else ("gate_proj", "up_proj")
        stack = "experts.up_proj" if len(names) == 1 else "experts.gate_up_proj"
        kinds = {"weight": ""} | ({"bias": "_bias"} if self.config.expert_bias else {})
        for kind, suffix in kinds.items():
            parts = [row.chunk(len(names)) for row in self.read(stack + suffix)[: self.granularity]]
            for index, name in enumerate(names):
                whole = torch.cat([part[index] for part in parts])
                if not torch.equal(whole, self.read(f"shared_expert.{name}.{kind}")):
                    return False
        return True

"""Two models in half precision, part by part on the same inputs.

What rounds where (a norm's weight, the rotation, a router's product, a factor on the embeddings) cannot be seen in
float32. In half precision it moves most values by one rounding, which then grows from layer to layer until nothing can
be told from noise. So each part (the embeddings, every layer, the head) of the second model is given what the first
one's had for input. Where both run the same operations in the same order, all bits agree; of float32 sums in another
order few are rounded to another value.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...library.upstream import attention
from ...modeling import MoebaForCausalLM
from .measures import difference
from .report import Check, Control
from .rounding_faults import rounding_faults
from .run import has_experts, implementations
from .twin import all_in_half

HALVES = (torch.bfloat16, torch.float16)
# Of a part's values, how many may be others. The same operations give none on one machine. A float32 sum of n terms in
# another order moves by about sqrt(n) * 2^-24 of its size, and so lies on the other side of a rounding of size eps with
# a chance of sqrt(n) * 2^-24 / eps: for the 96 terms of a twin 0.00008 in bfloat16 and 0.0006 in float16,
# for 4,096 terms 0.0005 and 0.004. What follows within a part spreads each such value over its token, so
# the limits leave room above that; they were set by measuring all families, with and without a `Family.reordered`.
SAME_OPERATIONS, OTHER_ORDER = 0.002, 0.05


@dataclass(frozen=True)
class Order:
    """How two models' operations differ.

    Attributes:
        reason: why they sum in another order; empty where they run the same operations.
        rounds_otherwise: they also round at other places (a product scaled before it is rounded, or after).
    """

    reason: str = ""
    rounds_otherwise: bool = False


@dataclass
class Trace:
    """What one run passed from part to part: the layers' inputs and outputs, the routers' logits, and the logits."""

    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    routers: tuple[torch.Tensor, ...] = ()
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def parts(self) -> dict[str, torch.Tensor]:
        """Name of a part -> what it made of its input."""
        routers = {f"router {i}": value for i, value in enumerate(self.routers)}
        layers = {f"layer {i}": value for i, value in enumerate(self.outputs)}
        return {"embeddings": self.inputs[0], **routers, **layers, "head": self.logits}


def compare_halves(
    source: PreTrainedModel, target: PreTrainedModel, ids: torch.Tensor, order: Order, on: str
) -> tuple[list[Check], list[Control]]:
    """Compare as loaded, and once more with every parameter in half precision where some stay in float32.

    On a twin, faults are planted where all bits agree: beside other roundings they could not be told.

    Args:
        ids: token ids, `[rows, length]`.
        order, on: see `HalfComparison`.
    """
    comparison = HalfComparison(source, target, ids, order, on)
    if on == "checkpoint" and _dtypes(source) != _dtypes(target):
        # A folder made on one release goes home on another, which loads routers otherwise: a note of the plan says so.
        detail = "one of the two is loaded with parameters in float32, as its release has it"
        checks = [Check(f"parts in {comparison.dtype}", "not applicable", detail=detail, on=on)]
    else:
        checks = [comparison.run()]
    casts = [all_in_half(model) for model in (source, target)]
    if casts[0] is not None or casts[1] is not None:
        one, other = (cast or model for cast, model in zip(casts, (source, target), strict=True))
        checks.append(_as_cast(one, other, ids, order, on))
    ours = target if isinstance(target, MoebaForCausalLM) else source
    if not isinstance(ours, MoebaForCausalLM) or on == "checkpoint" or not comparison.is_sharp:
        return checks, []
    if ours is source:
        comparison = HalfComparison(target, source, ids, order, on)
    controls = []
    for fault in rounding_faults(ours):
        caught, largest = comparison.catches(fault.plant(ours))
        controls.append(Control(f"{fault.name} ({comparison.dtype})", caught, largest))
    return checks, controls


def _dtypes(model: PreTrainedModel) -> dict[torch.dtype, int]:
    """How many numbers a model holds in each precision."""
    found: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        found[parameter.dtype] = found.get(parameter.dtype, 0) + parameter.numel()
    return found


def _as_cast(
    source: PreTrainedModel, target: PreTrainedModel, ids: torch.Tensor, order: Order, on: str
) -> Check:
    """The routers' products, with weights in half precision that stay in float32 when they are loaded.

    Only then does it show in which precision they multiply. What a stock model makes of them after such a cast, which
    no library does by itself, is its own.
    """
    try:
        comparison = HalfComparison(source, target, ids, order, on, only="router")
    except RuntimeError as error:  # such a model does not run
        detail = f"the source does not run: {' '.join(str(error).split())}"
        return Check("parts after a cast", "not applicable", detail=detail[:200], on=on)
    return replace(comparison.run(), name=f"parts after a cast to {comparison.dtype}")


class HalfComparison:
    """Two models of one half precision, in eval mode.

    Args:
        on: which weights these are, for the report.
        only: what the names of the compared parts begin with.
    """

    def __init__(
        self,
        source: PreTrainedModel,
        target: PreTrainedModel,
        ids: torch.Tensor,
        order: Order,
        on: str,
        only: str = "",
    ) -> None:
        self.only = only
        self.source, self.target, self.ids, self.order, self.on = source, target, ids, order, on
        self.limit = OTHER_ORDER if order.reason else SAME_OPERATIONS
        self.dtype = str(source.dtype).removeprefix("torch.")
        self.implementation = implementations(source, target)[0]
        with attention(self.implementation, source):
            self.expected = trace(source, ids)

    @property
    def is_sharp(self) -> bool:
        """Whether the two agree in nearly all bits, so that one rounding elsewhere stands out."""
        return max(self.different(self.target).values()) <= self.limit

    def run(self) -> Check:
        """The share of values that differ, of the part that differs most."""
        if not all(bool(torch.isfinite(value).all()) for value in self.expected.parts().values()):
            detail = f"the source itself leaves the range of {self.dtype}"
            return Check(f"parts in {self.dtype}", "unverified", detail=detail, on=self.on)
        by_part = self.different(self.target)
        if not by_part:
            return Check(f"parts in {self.dtype}", "not applicable", detail=f"no {self.only}s", on=self.on)
        worst = max(by_part, key=lambda name: by_part[name])
        figures = {"different": by_part[worst], "parts": len(by_part)}
        if by_part[worst] <= self.limit:
            return self._check(True, figures)
        if self.order.rounds_otherwise and self._is_within_rounding():
            return self._check(True, figures, f"within the source's own rounding only: {self.order.reason}")
        return self._check(False, figures, f"{worst} rounds otherwise")

    def different(self, model: PreTrainedModel) -> dict[str, float]:
        """Part -> share of its values that are not the source's, from the source's inputs."""
        return {name: _unequal(value, other) for name, value, other in self._pairs(model)}

    def catches(self, damaged: PreTrainedModel) -> tuple[bool, float]:
        """Whether a damaged target stands out, and the largest difference of a part."""
        pairs = self._pairs(damaged)
        largest = max(difference(value.double(), other.double()) for _, value, other in pairs)
        return max(_unequal(value, other) for _, value, other in pairs) > self.limit, largest

    def _pairs(self, model: PreTrainedModel) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        """Part, and what the source and a model made of its inputs there; routers of other shapes are left out."""
        found = self._replay(model).parts()
        return [
            (name, value, found[name])
            for name, value in self.expected.parts().items()
            if name.startswith(self.only) and name in found and found[name].shape == value.shape
        ]

    def _replay(self, model: PreTrainedModel) -> Trace:
        with attention(self.implementation, model):
            return trace(model, self.ids, self.expected)

    def _is_within_rounding(self) -> bool:
        """Whether the target differs from the source by no more than half precision moves the source.

        Two that round independently lie up to twice as far apart as each from the truth.
        """
        truth = self._replay(copy.deepcopy(self.source).float()).parts()
        return all(
            difference(value.double(), other.double(), torch.mean)
            <= 2 * difference(value.double(), truth[name].double(), torch.mean)
            for name, value, other in self._pairs(self.target)
            if not name.startswith("router") and not torch.equal(value, other)
        )

    def _check(self, passes: bool, figures: dict[str, Any], detail: str = "") -> Check:
        name = f"parts in {self.dtype}"
        return Check(name, "verified" if passes else "failed", figures, detail, self.on)


def trace(model: PreTrainedModel, ids: torch.Tensor, forced: Trace | None = None) -> Trace:
    """Run a model and keep what its parts made.

    Args:
        forced: another model's run: every layer, and the head, is given that one's inputs instead of its own.
    """
    found = Trace()
    with torch.no_grad(), _hooks(model, found, forced):
        settings = {"output_router_logits": True} if has_experts(model) else {}
        out = model(ids, use_cache=False, **settings)
    found.logits = out.logits
    found.routers = tuple(getattr(out, "router_logits", None) or ())
    return found


@contextmanager
def _hooks(model: PreTrainedModel, found: Trace, forced: Trace | None) -> Iterator[None]:
    handles: list[Any] = []

    def before(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            found.inputs.append(given.detach().clone())  # a layer may change its input in place
            if forced is None:
                return None
            given = forced.inputs[index].to(given.dtype, copy=True)
            return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})

        return hook

    def after(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            several = isinstance(output, tuple | list)
            made = output[0] if several else output
            found.outputs.append(made.detach().clone())
            if forced is None:
                return None
            passed = forced.outputs[index].to(made.dtype, copy=True)
            return type(output)([passed, *output[1:]]) if several else passed

        return hook

    for index, layer in enumerate(layers_in_order(model)):
        handles.append(layer.register_forward_pre_hook(before(index), with_kwargs=True))
        handles.append(layer.register_forward_hook(after(index)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers_in_order(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers: the first list of as many modules as the config has layers."""
    count = model.config.num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next(modules for modules in lists if len(modules) == count)


def _unequal(a: torch.Tensor, b: torch.Tensor) -> float:
    """The share of values that differ; all of them where one side is not finite."""
    if not bool(torch.isfinite(b).all()):
        return math.inf
    return (a != b).double().mean().item()

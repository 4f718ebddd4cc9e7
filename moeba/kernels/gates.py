"""The activations between an expert's two products that kernels know by formula.

An experts class of transformers may compute anything in its `_apply_gate`. Which formula that is, is found by
behaviour: the method is asked about a grid of numbers that reaches beyond every bend, and a formula that answers the
same to within rounding is the gate. What agrees with none has no `Gate`, and runs through PyTorch.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..library.torch_internals import own_modules
from ..library.upstream import ExpertsModule, apply_gate

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
# In the order in which the kernels number them.
KINDS = (*ACTIVATIONS, "clamped", "limited_silu")


@dataclass(frozen=True)
class Gate:
    """A gate by its formula, with g and u the two halves of the inner product.

    `kind` is an activation (`act(g) * u`, or `act(g)` if not `gated`), "clamped" (`(u + 1) * g * sigmoid(alpha * g)`,
    GPT-OSS) or "limited_silu" (`silu(g) * u`); the last two cut g above `limit` and u on both sides.
    `interleaved`: g and u alternate, instead of standing one after the other.
    """

    kind: str
    gated: bool = True
    interleaved: bool = False
    alpha: float = 1.0
    limit: float = float("inf")

    def __call__(self, inner: torch.Tensor) -> torch.Tensor:
        """`[..., 2 * width]` (or `[..., width]` if not gated) `-> [..., width]`."""
        if not self.gated:
            return ACTIVATIONS[self.kind](inner)
        gate, up = (inner[..., ::2], inner[..., 1::2]) if self.interleaved else inner.chunk(2, dim=-1)
        if self.kind in ACTIVATIONS:
            return ACTIVATIONS[self.kind](gate) * up
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        if self.kind == "clamped":
            return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))
        return F.silu(gate) * up


# Attributes of an experts module, or of a part of it that computes its gate, that hold the gate's numbers.
_ALPHAS = ("alpha", "swiglu_alpha")
_LIMITS = ("limit", "swiglu_limit")
# By module: the state in which it was asked, and its gate.
_known: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Gate | None]] = (
    weakref.WeakKeyDictionary()
)


def gate_of(module: ExpertsModule) -> Gate | None:
    """The gate of an experts module, or None where no formula agrees; asked once for each state of the module."""
    # Read here, where torch.compile sees it and compiles again when it changes.
    act = own_modules(module).get("act_fn") or module.__dict__.get("act_fn")
    return _look_up(module, act)


@torch.compiler.assume_constant_result
def _look_up(module: ExpertsModule, act: Any) -> Gate | None:
    state = (act, _numbers(module, _ALPHAS), _numbers(module, _LIMITS))
    known = _known.get(module)
    if known is None or known[0] != state:
        if type(torch.empty(0)) is not torch.Tensor:
            return None  # tensors have no values now, as under FakeTensorMode: it is asked another time
        known = _known[module] = (state, _recognise(module))
    return known[1]


def _numbers(module: nn.Module, names: tuple[str, ...]) -> tuple[float, ...]:
    found = []
    for owner in (module, module.__dict__.get("clamped_gate")):
        for name in names if owner is not None else ():
            value = owner.__dict__.get(name, getattr(type(owner), name, None))
            if isinstance(value, int | float):
                found.append(float(value))
    return tuple(found)


def _candidates(module: ExpertsModule) -> Iterator[Gate]:
    if not module.has_gate:
        yield from (Gate(kind, gated=False) for kind in ACTIVATIONS)
        return
    alphas, limits = {*_numbers(module, _ALPHAS), 1.0}, {*_numbers(module, _LIMITS), float("inf")}
    for interleaved in (not module.is_concatenated, module.is_concatenated):
        yield from (Gate(kind, interleaved=interleaved) for kind in ACTIVATIONS)
        for alpha, limit in itertools.product(alphas, limits):
            yield Gate("clamped", True, interleaved, alpha, limit)
            yield Gate("limited_silu", True, interleaved, limit=limit)


@torch.no_grad()
def _recognise(module: ExpertsModule) -> Gate | None:
    line = [step / 4 for step in range(-16, 17)] + [
        sign * 2.0**power for sign in (-1, 1) for power in range(-12, 17)
    ]
    for limit in filter(math.isfinite, _numbers(module, _LIMITS)):
        line += [sign * limit * factor for sign in (-1.0, 1.0) for factor in (0.999, 1.0, 1.001)]
    # In float64: an activation written with 1 + tanh(x) loses what there is to compare below -4 in float32.
    numbers = torch.tensor(line, dtype=torch.float64, device="cpu")
    grid = torch.cartesian_prod(numbers, numbers)
    # Several columns, so that a gate that mixes them is not taken for one that does not.
    probe = torch.stack((grid, grid.flip(0), grid.roll(7, 0)), dim=-1)
    probes = {False: probe.flatten(1), True: probe.transpose(1, 2).flatten(1)}
    answers: dict[bool, torch.Tensor] = {}
    for gate in _candidates(module):
        inner = probes[gate.interleaved]
        if gate.interleaved not in answers:
            try:
                answers[gate.interleaved] = apply_gate(module, inner)
            except (RuntimeError, TypeError, ValueError, AttributeError):
                return None
        expected, answer = gate(inner), answers[gate.interleaved]
        if answer.shape == expected.shape and torch.allclose(answer, expected, rtol=2e-6, atol=1e-7):
            return gate
    return None

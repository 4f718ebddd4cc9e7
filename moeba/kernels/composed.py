"""A layer of experts put together from parts that can be read: any gate, bias, layout and norm, on any device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..library.upstream import ExpertsModule, apply_gate
from .grouped_linear import grouped_linear
from .layer import ExpertsLayer, foreign_type
from .routing import sort_by_expert


def obstacle(layer: ExpertsLayer, hidden: torch.Tensor) -> str | None:
    """Why this path cannot run, or None."""
    if torch.compiler.is_compiling():
        return "the size of each expert's share depends on data, which torch.compile cannot follow"
    if hidden.device.type != "cpu":
        return f"reading how many tokens each expert has would wait for the device ({hidden.device.type})"
    if (foreign := foreign_type(*layer.weights)) is not None:
        return f"the weights are of type {foreign}"
    return None


def run(
    layer: ExpertsLayer, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`hidden` `[tokens, hidden]`, `index` and `weights` `[tokens, top_k]`; returns what `hidden` is like."""
    routing = sort_by_expert(index, layer.num_experts)

    def times(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return grouped_linear(rows, weight, routing.counts, bias, layer.transposed)

    return compose(
        layer.module,
        hidden,
        routing.order,
        weights,
        lambda rows: times(rows, layer.inner, layer.inner_bias),
        lambda act: times(act, layer.down, layer.down_bias),
    )


def compose(
    module: ExpertsModule,
    hidden: torch.Tensor,
    order: torch.Tensor,
    weights: torch.Tensor,
    inner: Callable[[torch.Tensor], torch.Tensor],
    down: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The layer around its two products, `inner` and `down`, which map rows sorted by expert.

    `order` `[selections]`: the place (token * top_k + choice) of each sorted row; other places answer zero.
    """
    rows = hidden.index_select(0, order // weights.shape[1])
    answers = down(apply_gate(module, inner(rows)))
    if module.has_post_expert_norm:
        answers = module.post_expert_norm(answers)
    weighted = answers * weights.reshape(-1)[order, None]
    # Back to the order of the choices, and summed in it, in float32 or more whatever the dtype.
    choices = weighted.new_zeros(weights.numel(), hidden.shape[1]).index_copy(0, order, weighted)
    wide = torch.promote_types(choices.dtype, torch.float32)
    return choices.view(*weights.shape, hidden.shape[1]).sum(1, dtype=wide).to(hidden.dtype)

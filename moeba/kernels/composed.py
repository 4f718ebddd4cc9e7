"""A layer of experts put together from parts that can be read: any gate, bias, layout and norm, on any device."""

from __future__ import annotations

import torch

from .gates import apply_gate
from .grouped_linear import grouped_linear
from .layer import ExpertsLayer
from .routing import sort_by_expert


def obstacle(layer: ExpertsLayer, hidden: torch.Tensor) -> str | None:
    """Why this path cannot run, or None."""
    if torch.compiler.is_compiling():
        return "the size of each expert's share depends on data, which torch.compile cannot follow"
    if hidden.device.type != "cpu":
        return f"reading how many tokens each expert has would wait for the device ({hidden.device.type})"
    if layer.foreign_type is not None:
        return f"the weights are of type {layer.foreign_type}"
    return None


def run(
    layer: ExpertsLayer, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`hidden` `[tokens, hidden]`, `index` and `weights` `[tokens, top_k]`; returns what `hidden` is like."""
    routing = sort_by_expert(index, layer.num_experts)
    inner = grouped_linear(
        hidden[routing.tokens], layer.inner, routing.counts, layer.inner_bias, layer.transposed
    )
    act = apply_gate(layer.module, inner)
    answers = grouped_linear(act, layer.down, routing.counts, layer.down_bias, layer.transposed)
    if layer.module.has_post_expert_norm:
        answers = layer.module.post_expert_norm(answers)
    weighted = answers * weights.reshape(-1)[routing.order, None]
    # Back to the order of the choices, and summed in it, in float32 whatever the dtype.
    choices = weighted.new_zeros(index.numel(), hidden.shape[1]).index_copy(0, routing.order, weighted)
    return choices.view(*index.shape, hidden.shape[1]).sum(1, dtype=torch.float32).to(hidden.dtype)

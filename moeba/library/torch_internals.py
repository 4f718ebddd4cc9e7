"""Private names of PyTorch that Moeba reaches, the same in every tested release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def own_parameters(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """The table behind a module's attributes, a fifth of the price of looking one up by `getattr`."""
    return module._parameters


def own_modules(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """The table of submodules."""
    return module._modules


def weight_of(module: nn.Module) -> torch.Tensor:
    """Its weight, which to a type checker may be a module."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def has_hooks(module: nn.Module) -> bool:
    """Whether anything waits for a call of this module or for its gradient."""
    tables = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(tables)


def has_gradient_hooks(tensor: torch.Tensor) -> bool:
    """Whether anything waits for the gradient of a tensor."""
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))


def storage_holders(tensor: torch.Tensor) -> int:
    """How many tensors and others hold the memory of a tensor."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


def is_transformed() -> bool:
    """Whether a function of `torch.func` (vmap, grad …) runs; not while a compiler traces, which knows its own way."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def will_accumulate(node: Any) -> bool:
    """Whether the running backward pass will execute a node of the graph.

    Raises:
        RuntimeError: `torch.autograd.grad` asks for the gradient of this very node.
    """
    return torch._C._will_engine_execute_node(node)


def is_in_backward() -> bool:
    """Whether a backward pass runs on this thread: a forward pass inside it repeats an earlier one."""
    return torch._C._current_graph_task_id() != -1

"""What runs behind `experts_implementation="moeba"`, for any model of transformers whose experts use its interface."""

from __future__ import annotations

import inspect
from types import ModuleType

import torch

from ..library.torch_internals import is_transformed
from ..library.upstream import ALL_EXPERTS_FUNCTIONS, ExpertsModule, logging
from . import composed, cpu, gpu
from .layer import foreign_type, layer_of
from .memory import release_gradient_memory

logger = logging.get_logger(__name__)

NAME = "moeba"
_SHARDED = "DTensor"
# The fastest first. Each has `obstacle(layer, hidden)`, why it cannot run, and `run(layer, hidden, index, weights)`.
PATHS: dict[str, tuple[ModuleType, ...]] = {"cpu": (cpu, composed), "cuda": (gpu,)}


def moeba_experts_forward(
    self: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts' answer, `[tokens, hidden]` in and out; `top_k_index` and `top_k_weights` `[tokens, top_k]`.

    Takes the fastest path that can run this module here, and transformers' `grouped_mm` where none can, where
    `torch.export` or `torch.jit.trace` records the model, and under `torch.func`; for quantised tensors the module's
    own loop over experts.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or is_transformed():
        # The recorded program is to run where Moeba's operators are not, and those know no transforms.
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](self, hidden_states, top_k_index, top_k_weights)
    layer = layer_of(self)
    for path in PATHS.get(hidden_states.device.type, ()):
        reason = path.obstacle(layer, hidden_states)
        if reason is None:
            return path.run(layer, hidden_states, top_k_index, top_k_weights)
        _say_obstacle(type(self).__name__, path.__name__, reason)
    # Quantisers know matrices, and no groups of them.
    if foreign_type(*layer.weights) not in (None, _SHARDED):
        _say(f"{type(self).__name__}: experts run one after the other instead of in moeba's kernels.")
        return inspect.unwrap(type(self).forward)(self, hidden_states, top_k_index, top_k_weights)
    _say(f"{type(self).__name__}: experts run on transformers' grouped_mm instead of moeba's kernels.")
    return ALL_EXPERTS_FUNCTIONS["grouped_mm"](self, hidden_states, top_k_index, top_k_weights)


@torch.compiler.assume_constant_result
def _say_obstacle(experts: str, path: str, reason: str) -> None:
    if reason != cpu.absence():  # which is the machine's, and said already
        _say(f"{experts}: {path} does not run, because {reason}.")


@torch.compiler.assume_constant_result  # torch.compile cannot trace a logger: it says this while it traces
def _say(message: str) -> None:
    logger.warning_once(message)


def register_experts() -> None:
    """Make the name known to transformers; registering twice changes nothing."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, moeba_experts_forward)


def release_memory() -> None:
    """Give back what kernels keep from call to call on CPU: the memory of gradients that nobody holds, and scratch."""
    release_gradient_memory()
    cpu.release_scratch()

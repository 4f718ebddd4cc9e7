"""Running a model that is larger than memory: each module's weights are read when it runs, and dropped after."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from accelerate import init_empty_weights

from ...configuration import MoebaConfig
from ...conversion.alignment import aligned
from ...conversion.checkpoint import TensorSource
from ...library.accelerate_internals import attach_align_device_hook
from ...library.upstream import use_eager_experts
from ...modeling import MoebaForCausalLM
from ...modeling.feed_forward import build_feed_forward

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class _Weights(Mapping[str, torch.Tensor]):
    """A checkpoint's tensors in one dtype, as accelerate asks for them."""

    def __init__(self, tensors: TensorSource, dtype: torch.dtype) -> None:
        self._tensors, self._dtype = tensors, dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = EMBEDDING if name == HEAD and HEAD not in self._tensors.tensors else name
        tensor = aligned(self._tensors.read(stored))
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors.tensors)

    def __len__(self) -> int:
        return len(self._tensors.tensors)


def streamed_model(
    config: MoebaConfig, tensors: TensorSource, dtype: torch.dtype = torch.float32
) -> MoebaForCausalLM:
    """The model in eval mode; its largest module bounds the memory. For forward passes alone."""
    config = copy.deepcopy(config)
    config.dtype = dtype
    with init_empty_weights(include_buffers=False):
        model = MoebaForCausalLM(config)
    model.eval().requires_grad_(False)
    model.set_experts_implementation("eager")
    attach_align_device_hook(
        model,
        execution_device=torch.device("cpu"),
        offload=True,
        offload_buffers=False,
        weights_map=_Weights(tensors, dtype),
    )
    return model


def load_feed_forward(config: MoebaConfig, tensors: TensorSource, layer: int) -> torch.nn.Module:
    """The feed-forward of one layer, dense or sparse, in float32 with its own weights."""
    config = copy.copy(config)
    use_eager_experts(config)  # the fast ones want sizes that small models lack
    block = build_feed_forward(config, layer)
    prefix = f"model.layers.{layer}.mlp."
    state = {
        name.removeprefix(prefix): tensors.read(name).float()
        for name in tensors.tensors
        if name.startswith(prefix)
    }
    block.load_state_dict(state)
    return block.float().eval().requires_grad_(False)

"""Random native models in the shapes of four families, and the routing of their experts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Shape:
    hidden: int
    width: int  # of an expert
    experts: int
    top_k: int
    layers: int
    vocabulary: int = 8192

    @property
    def head_size(self) -> int:
        return 64 if self.hidden >= 512 else 8

    @property
    def heads(self) -> int:
        """The largest power of two that the hidden size has room for."""
        return 1 << ((self.hidden // self.head_size).bit_length() - 1)


# An experts layer has about 25 million weights on a CPU, more than its caches; on a card, the sizes that are published.
SHAPES: dict[str, dict[str, Shape]] = {
    "cpu": {
        "mixtral": Shape(512, 1792, 8, 2, 3),
        "qwen3_moe": Shape(512, 256, 64, 8, 8),
        "gpt_oss": Shape(512, 512, 32, 4, 3),
        "deepseek_v3": Shape(512, 256, 64, 6, 4),  # the first layer is dense
    },
    "cuda": {
        "mixtral": Shape(4096, 14336, 8, 2, 2, 32_000),
        "qwen3_moe": Shape(2048, 768, 128, 8, 4, 32_000),
        "gpt_oss": Shape(2880, 2880, 32, 4, 4, 32_000),
        "deepseek_v3": Shape(2048, 1408, 64, 6, 4, 32_000),
    },
    "tiny": {
        "mixtral": Shape(32, 48, 4, 2, 2, 64),
        "qwen3_moe": Shape(32, 16, 8, 2, 2, 64),
        "gpt_oss": Shape(32, 32, 6, 2, 2, 64),
        "deepseek_v3": Shape(32, 16, 8, 2, 2, 64),
    },
}
MODELS = tuple(SHAPES["cpu"])


def build_config(model_type: str, shape: Shape) -> PreTrainedConfig:
    fields = {
        "vocab_size": shape.vocabulary, "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": max(1, shape.heads // 4),
        "head_dim": shape.head_size, "num_experts_per_tok": shape.top_k, "max_position_embeddings": 4096,
        "initializer_range": shape.hidden**-0.5, "tie_word_embeddings": False, "pad_token_id": None,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    half = shape.head_size // 2
    fields |= {
        "mixtral": {"num_local_experts": shape.experts, "intermediate_size": shape.width, "sliding_window": None},
        "qwen3_moe": {
            "num_experts": shape.experts, "moe_intermediate_size": shape.width, "norm_topk_prob": True,
            "intermediate_size": 4 * shape.width,
        },
        "gpt_oss": {
            "num_local_experts": shape.experts, "intermediate_size": shape.width, "sliding_window": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        "deepseek_v3": {
            "n_routed_experts": shape.experts, "moe_intermediate_size": shape.width, "n_shared_experts": 2,
            "intermediate_size": 4 * shape.width, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
            "num_key_value_heads": shape.heads, "q_lora_rank": shape.hidden // 2, "kv_lora_rank": shape.hidden // 4,
            "qk_rope_head_dim": half, "qk_nope_head_dim": shape.head_size, "v_head_dim": shape.head_size,
            "head_dim": half, "num_mtp_layers": 0,
        },
    }[model_type]  # fmt: skip
    return transformers.CONFIG_MAPPING[model_type](**fields)


def build_model(model_type: str, shape: Shape, device: str, seed: int = 0) -> PreTrainedModel:
    """In float32, with random routers that prefer some experts, and random biases."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(build_config(model_type, shape), dtype=torch.float32)
    with torch.no_grad():
        # What all tokens share makes some experts busier than others, as in trained models.
        embedding = model.get_input_embeddings().weight
        embedding.normal_().add_(torch.randn(shape.hidden, device=device), alpha=0.5)
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "sinks")):
                parameter.normal_(std=0.1)
            elif name.endswith(("gate.weight", "router.weight")):
                parameter.normal_(std=shape.hidden**-0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.02)
    return model.eval()


def experts_of(model: nn.Module) -> list[nn.Module]:
    """The modules that transformers' experts interface runs."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "has_gate") and hasattr(module, "is_transposed")
    ]


def sizes_of(experts: nn.Module) -> tuple[int, int]:
    """Hidden size and width of an expert."""
    first, second = experts.down_proj.shape[1:]
    return (second, first) if experts.is_transposed else (first, second)


@dataclass(frozen=True)
class Routed:
    """What an experts module was called with: `[tokens, hidden]`, and `[tokens, top_k]` twice."""

    hidden: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor

    @property
    def distinct(self) -> int:
        return self.index.unique().numel()

    def split(self, tokens: int) -> list[Routed]:
        """Calls of `tokens` each."""
        parts = zip(*(part.split(tokens) for part in (self.hidden, self.index, self.weights)), strict=True)
        return [Routed(*part) for part in parts]


Routes = list[list[Routed]]  # by experts module, by call


@contextmanager
def recording(model: nn.Module) -> Iterator[Routes]:
    """Keep what each experts module is called with."""
    modules = experts_of(model)
    routes: Routes = [[] for _ in modules]
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, calls=calls: calls.append(Routed(*(arg.detach().clone() for arg in args)))
        )
        for module, calls in zip(modules, routes, strict=True)
    ]
    try:
        yield routes
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replaying(model: nn.Module, routes: Routes) -> Iterator[None]:
    """Have each experts module follow recorded choices, so that rounding cannot choose other experts.

    Where a token chose the same anyway, its weights stay its own and have a gradient.
    """

    def replay(calls: Iterator[Routed]):
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, index, weights = args
            call = next(calls)
            same = (index == call.index).all(dim=-1, keepdim=True)
            return hidden, call.index, torch.where(same, weights, call.weights)

        return hook

    hooks = [
        module.register_forward_pre_hook(replay(iter(calls)))
        for module, calls in zip(experts_of(model), routes, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def busiest_share(routes: Routes, experts: int) -> float:
    """Selections of the busiest expert over the mean, averaged over the layers' first calls."""
    counts = [torch.bincount(calls[0].index.flatten(), minlength=experts).float() for calls in routes]
    return sum((count.max() / count.mean()).item() for count in counts) / len(counts)

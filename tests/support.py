"""What tests of several packages share: tiny configs, and weights that make mistakes visible.

A freshly initialised model hides faults: with norms of exactly 1 and tiny weights, swapped norms or a missing
    rotation
change no logit. `randomise` gives every tensor values of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moeba import (
    MoebaConfig,
    MoebaForCausalLM,
    MoebaForQuestionAnswering,
    MoebaForSequenceClassification,
    MoebaForTokenClassification,
    MoebaModel,
)

HEADS = [
    MoebaModel,
    MoebaForCausalLM,
    MoebaForSequenceClassification,
    MoebaForTokenClassification,
    MoebaForQuestionAnswering,
]
# The beginning of a script for another process, which cannot import the package then.
WITHOUT_MOEBA = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "moeba":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""

SIZES: dict[str, Any] = dict(
    vocab_size=67,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    pad_token_id=0,
)
# 12 experts: ten and more sort before two as text; 3 of 12: the choice matters.
SPARSE: dict[str, Any] = dict(num_experts=12, num_experts_per_tok=3, moe_intermediate_size=24)
ALL_SPARSE: dict[str, Any] = dict(mlp_layer_types=["sparse", "sparse"])  # of the variant `moe`

VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "moe": dict(**SPARSE, mlp_layer_types=["dense", "sparse"], num_hidden_layers=2),
    "shared_sigmoid": dict(
        **SPARSE,
        shared_expert_intermediate_size=16,
        shared_expert_gate=True,
        scoring_func="sigmoid",
        router_selection_bias=True,
        n_group=4,
        topk_group=2,
        norm_topk_eps=1e-20,
        routed_scaling_factor=2.5,
        router_matmul_dtype="float32",
        qk_norm="head",
        num_hidden_layers=2,
    ),
    "learned_mlp": dict(
        position_embedding_type="learned",
        norm_type="layernorm",
        feed_forward_type="mlp",
        hidden_act="gelu_new",
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
    "capped": dict(
        block_order="sandwich_norm",
        norm_type="rmsnorm_unit_offset",
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "biased_experts": dict(
        **SPARSE,
        expert_bias=True,
        router_bias=True,
        feed_forward_type="mlp",
        hidden_act="relu",
        block_order="parallel",
        position_embedding_type="sinusoidal",
        qk_norm="full",
    ),
}


def tiny_config(variant: str = "dense", **overrides: Any) -> MoebaConfig:
    """A config of a few thousand parameters in one of the shapes of `VARIANTS`."""
    return MoebaConfig(**{**SIZES, **VARIANTS[variant], **overrides})


def tiny_model(variant: str = "dense", model_class: type = MoebaForCausalLM, seed: int = 0, **overrides: Any):
    """A randomised model in evaluation mode."""
    return randomise(model_class(tiny_config(variant, **overrides)), seed).eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and persistent buffer values that no other one has: vectors around what they were
    made as (norms around 1), matrices large enough that each changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    persistent = set(model.state_dict())
    tensors = dict(model.named_parameters()) | {k: v for k, v in model.named_buffers() if k in persistent}
    for name in sorted(tensors):
        tensor = tensors[name]
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        if tensor.dim() <= 1:
            tensor.add_(0.25 * noise)
        else:
            tensor.copy_(noise * max(0.2, tensor.shape[-1] ** -0.5))
    return model


def random_ids(
    batch: int = 2, tokens: int = 12, vocab_size: int = SIZES["vocab_size"], seed: int = 1
) -> torch.Tensor:
    """Token ids without the padding id 0."""
    return torch.randint(1, vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of each parameter's gradient, which must exist."""
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing, f"no gradient at {missing}"
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

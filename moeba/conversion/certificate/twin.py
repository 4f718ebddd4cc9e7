"""Twins: small models with the same choices of parts and every parameter random.

A freshly initialised model hides most faults (norms are 1, biases 0), and a large one hides windows behind long
contexts. A twin has short windows and contexts, so the certificate's inputs pass them, and nothing in it is neutral.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ...configuration import MoebaConfig
from ...modeling import MoebaForCausalLM
from ..checkpoint import Checkpoint
from ..family import Family
from ..plan import PlannedTensors, plan_export, plan_import
from ..weight_files import TensorInfo

WINDOW, ORIGINAL_CONTEXT, CONTEXT = 8, 16, 64


def shrink(config: MoebaConfig) -> MoebaConfig:
    """A config with the same parts, small sizes, and each kind of layer at least once."""
    values = copy.deepcopy(config.to_dict())
    values.pop("per_layer_config", None)
    layers = _representative_layers(config)
    groups = min(config.num_attention_heads // config.num_key_value_heads, 2)
    kv_heads = min(config.num_key_value_heads, 2)
    head_dim = min(config.head_dim, 16)
    heads = kv_heads * groups
    square = config.hidden_size == config.num_attention_heads * config.head_dim
    hidden_size = heads * head_dim if square else heads * (head_dim + 2)
    values.update(
        vocab_size=min(config.vocab_size, 96),
        hidden_size=hidden_size,
        intermediate_size=40,
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=CONTEXT,
        layer_types=[config.layer_types[i] for i in layers],
        mlp_layer_types=[config.mlp_layer_types[i] for i in layers],
        sliding_window=None if config.sliding_window is None else WINDOW,
        rope_parameters=_short_rope(values.get("rope_parameters"), config, head_dim),
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
    )
    if config.attention_multiplier == config.head_dim**-0.5:
        values["attention_multiplier"] = None
    if config.num_experts:
        values.update(_few_experts(config))
    for name in ("architectures", "id2label", "label2id", "auto_map", "transformers_version"):
        values.pop(name, None)
    return MoebaConfig.from_dict(values)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Make no parameter neutral: norms and other vectors spread around their start, matrices wide enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *_persistent_buffers(model)]:
            noise = torch.randn(tensor.shape, generator=generator)
            centre = (
                1.0 if name.endswith("norm.weight") or ".ln_" in name and name.endswith("weight") else 0.0
            )
            scale = 0.25 if tensor.dim() == 1 else tensor.shape[-1] ** -0.5
            tensor.copy_(centre + scale * noise)


def convert_twin(
    config: MoebaConfig, family: Family, folder: Path
) -> tuple[PreTrainedModel, MoebaForCausalLM]:
    """A random native model as stock transformers writes it, and what the family's rows make of those files."""
    native_config = family.to_native(shrink(config))
    stock = AutoModelForCausalLM.from_config(native_config, dtype=torch.float32)
    randomise(stock)
    stock.tie_weights()
    stock.save_pretrained(folder)
    plan, moeba_config = plan_import(Checkpoint(folder))
    planned = PlannedTensors(plan)
    ours = MoebaForCausalLM(moeba_config)
    load_exactly(ours, {name: planned.read(name) for name in planned.tensors})
    return stock.eval(), ours.eval()


def export_twin(
    config: MoebaConfig, family: Family, folder: Path
) -> tuple[MoebaForCausalLM, PreTrainedModel]:
    """A random Moeba model, and what stock transformers loads from the files that the family's rows make of it."""
    ours = MoebaForCausalLM(shrink(config))
    randomise(ours)
    ours.tie_weights()
    state = dict(ours.state_dict().items())
    if ours.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    planned = PlannedTensors(plan_export(StateDict(state), ours.config, family))
    save_file(
        {name: planned.read(name) for name in planned.tensors}, folder / "model.safetensors", {"format": "pt"}
    )
    family.to_native(ours.config).save_pretrained(folder)
    return ours.eval(), load_model(folder)


class StateDict:
    """Tensors in memory as a source of recipes."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self._state = state
        self.tensors = {
            name: TensorInfo(name, tuple(value.shape), value.dtype) for name, value in state.items()
        }

    def read(self, name: str) -> torch.Tensor:
        return self._state[name].detach()


def load_exactly(model: MoebaForCausalLM, state: dict[str, torch.Tensor]) -> None:
    """Load with every tensor accounted for; a tied head is the only one that may be absent."""
    result = model.load_state_dict(state, strict=False)
    missing = set(result.missing_keys) - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    assert not missing and not result.unexpected_keys, (missing, result.unexpected_keys)
    model.tie_weights()


def load_model(folder: Path, dropped: Collection[str] = ()) -> PreTrainedModel:
    """Any causal language model of a folder, in float32, with eager experts.

    Args:
        dropped: tensors that carry nothing, and that the model may have no place for.

    Raises:
        ValueError: transformers found missing, unexpected or misshapen tensors, which it would replace by random ones.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    wrong = {
        name: sorted(set(map(str, info[name])) - set(dropped))
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(wrong.values()):
        raise ValueError(f"{folder} does not load completely: {wrong}")
    if getattr(model.config, "num_experts", 0):
        model.set_experts_implementation("eager")
    return model.eval()


def _persistent_buffers(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    kept = set(model.state_dict())
    return [
        (name, buffer)
        for name, buffer in model.named_buffers()
        if name in kept and buffer.is_floating_point()
    ]


def _representative_layers(config: MoebaConfig) -> list[int]:
    """The first layer of each kind, and at least two layers."""
    kinds: dict[Any, int] = {}
    for i in range(config.num_hidden_layers):
        kinds.setdefault((config.layer_types[i], config.mlp_layer_types[i]), i)
    chosen = sorted(kinds.values())
    return chosen if len(chosen) > 1 or config.num_hidden_layers < 2 else [0, 1]


def _few_experts(config: MoebaConfig) -> dict[str, Any]:
    """Twelve experts where there are as many (ten sorts before two as text), and fewer chosen than there are."""
    if config.n_group > 1:
        experts = config.n_group * min(config.num_experts // config.n_group, 3)
        chosen = min(config.num_experts_per_tok, config.topk_group * (experts // config.n_group))
    else:
        experts = min(config.num_experts, 12)
        chosen = min(
            config.num_experts_per_tok, 3 if config.num_experts_per_tok < config.num_experts else experts
        )
    shared = min(config.shared_expert_intermediate_size, 20)
    return {
        "num_experts": experts,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": shared,
    }


def _short_rope(rope: dict[str, Any] | None, config: MoebaConfig, head_dim: int) -> dict[str, Any] | None:
    if not rope:
        return rope
    if any(isinstance(value, dict) for value in rope.values()):
        return {kind: _short_rope(value, config, head_dim) for kind, value in rope.items()}
    if rope.get("rope_type") in ("yarn", "longrope", "llama3"):
        rope["original_max_position_embeddings"] = ORIGINAL_CONTEXT
    rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0)) // 2
    for name in ("short_factor", "long_factor"):
        if name in rope:
            rope[name] = rope[name][:rotated]
    return rope

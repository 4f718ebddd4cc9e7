"""Twins: small models with the same choices of parts and every parameter random.

A freshly initialised model hides most faults (norms are 1, biases 0), and a large one hides windows behind long
contexts. A twin has short windows and contexts, so the certificate's inputs pass them, and nothing in it is neutral.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ...configuration import MoebaConfig
from ...configuration.model_facts import each_rope, layer_view
from ...configuration.position_fields import SMALL_CONTEXT
from ...configuration.schema import FACTS
from ...library.torch_internals import weight_of
from ...library.upstream import can_set_experts
from ...modeling import MoebaForCausalLM
from ..alignment import align
from ..checkpoint import Checkpoint, TensorSource
from ..family import Family
from ..plan import PlannedTensors, plan_export, plan_import
from ..stock_loading import load_stock
from ..weight_files import TensorInfo
from .battery import turns
from .run import has_experts

Model = TypeVar("Model", bound=PreTrainedModel)

ORIGINAL_CONTEXT, CONTEXT = 16, SMALL_CONTEXT
# Among few pairs of channels, the bounds of yarn's ramp are rounded to the same ones whatever they are.
_WIDEST_HEAD, _WIDEST_YARN = 16, 64


def shrink(config: MoebaConfig) -> MoebaConfig:
    """A config with the same parts, small sizes, and each kind of layer at least once."""
    values = copy.deepcopy(config.to_dict())
    values.pop("per_layer_config", None)
    layers = _representative_layers(config)
    first = layer_view(config, layers[0] if layers else 0)
    divisor = _common_heads([layer_view(config, i) for i in layers])
    scaled = {rope["rope_type"] for rope in each_rope(config)} & {"yarn", "llama3"}
    widest = _WIDEST_YARN if "yarn" in scaled else _WIDEST_HEAD
    sizes = _few_heads(first, divisor, widest)
    heads, head_dim = sizes["num_attention_heads"], sizes["head_dim"]
    square = first.hidden_size // first.num_attention_heads == first.head_dim
    hidden_size = heads * head_dim if square else heads * (head_dim + 2)
    if config.embedding_multiplier == config.hidden_size**0.5 and _is_whole(hidden_size**0.5):
        # A factor that half precision holds exactly would hide whether it is rounded.
        if not square:
            hidden_size += 2 * heads
        elif config.attention_type == "grouped_query" and head_dim > 4:
            widest = head_dim - 2
            sizes = _few_heads(first, divisor, widest)
            head_dim = sizes["head_dim"]
            hidden_size = heads * head_dim
    values.update({name: FACTS[name].small(value) for name, value in values.items() if name in FACTS})
    if config.attention_multiplier == config.head_dim**-0.5:  # the usual one, said in figures
        values["attention_multiplier"] = None
    values.update(
        sizes,
        hidden_size=hidden_size,
        embedding_size=hidden_size if config.embedding_size == config.hidden_size else hidden_size // 2,
        intermediate_size=4 * hidden_size if config.intermediate_size == 4 * config.hidden_size else 40,
        num_hidden_layers=len(layers),
        # The original context of yarn and llama3 stays as it is, and the two have a ratio.
        max_position_embeddings=config.max_position_embeddings if scaled and not turns(config) else CONTEXT,
        layer_types=[config.layer_types[i] for i in layers],
        mlp_layer_types=[config.mlp_layer_types[i] for i in layers],
        rotary_layers=[config.rotary_layers[i] for i in layers],
        rope_parameters=_short_rope(
            values.get("rope_parameters"),
            sizes.get("qk_rope_head_dim", head_dim),
            bool(config.query_growth_beta),
        ),
        dtype="float32",
    )
    if config.sparse_layers:
        values.update(_few_experts(first))
    if uneven := _layers_that_differ([layer_view(config, i) for i in layers], values, divisor, widest):
        values["per_layer_config"] = uneven
    for name in (
        "architectures",
        "id2label",
        "label2id",
        "auto_map",
        "transformers_version",
    ):
        values.pop(name, None)
    return MoebaConfig.from_dict(values)


def _is_whole(number: float) -> bool:
    return number == int(number)


def shrink_for(config: MoebaConfig, family: Family) -> MoebaConfig:
    """A small config whose numbers follow from each other as the family has it."""
    return rederived(shrink(config), family)


def rederived(config: MoebaConfig, family: Family) -> MoebaConfig:
    """With the numbers that follow from sizes (root of the width, …) as the family has them, if it can hold these."""
    try:
        return family.rederived(config)
    except (
        ValueError
    ):  # the rows contradict each other, or hold no such model: the comparison or the export will say so
        return config


def _common_heads(layers: list[Any]) -> int | None:
    """What the numbers of heads can be divided by where layers differ in them, so that they keep their ratios."""
    counts = {(layer.num_attention_heads, layer.num_key_value_heads) for layer in layers}
    return math.gcd(*(count for pair in counts for count in pair)) if len(counts) > 1 else None


def _few_heads(layer: Any, divisor: int | None, widest: int) -> dict[str, Any]:
    """Widths and numbers of heads of one layer, made small: no head wider than `widest`."""
    if divisor is not None:
        heads, kv_heads = layer.num_attention_heads // divisor, layer.num_key_value_heads // divisor
    else:
        groups = min(layer.num_attention_heads // layer.num_key_value_heads, 2)
        # Without groups as many as the shards into which a fused projection may be cut (CodeGen).
        kv_heads = min(layer.num_key_value_heads, 2 if groups > 1 else 4)
        heads = kv_heads * groups
    head_dim = min(layer.head_dim, widest)
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
    sizes["v_head_dim"] = head_dim if layer.v_head_dim == layer.head_dim else max(head_dim // 2, 1)
    if layer.attention_type == "latent":
        whole = layer.qk_rope_head_dim == layer.head_dim
        sizes["qk_rope_head_dim"] = (
            head_dim if whole else min(layer.qk_rope_head_dim, max(head_dim // 4 * 2, 2))
        )
        sizes["kv_lora_rank"] = min(layer.kv_lora_rank, 12)
        sizes["q_lora_rank"] = None if layer.q_lora_rank is None else min(layer.q_lora_rank, 20)
    return sizes


def _layers_that_differ(
    layers: list[Any], values: dict[str, Any], divisor: int | None, widest: int
) -> dict[int, dict[str, Any]]:
    """Per-layer sizes of a twin whose layers differ, where they are not the twin's first layer's."""
    found = {}
    for i, layer in enumerate(layers):
        sizes = _few_heads(layer, divisor, widest) | (_few_experts(layer) if layer.sparse_layers else {})
        found[i] = {name: value for name, value in sizes.items() if value != values[name]}
    return {i: sizes for i, sizes in found.items() if sizes}


def randomise(model: PreTrainedModel, seed: int = 0, embedding_multiplier: float = 1.0) -> None:
    """Make no parameter neutral: norms and other vectors spread around their start, matrices wide enough to matter.

    Args:
        embedding_multiplier: what the model makes its embedded tokens larger by. It is undone here: beside a large
            stream, the epsilon of a norm is lost in rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *_persistent_buffers(model)]:
            noise = torch.randn(tensor.shape, generator=generator)
            is_norm = "norm" in name or ".ln_" in name
            centre = 1.0 if is_norm and name.endswith("weight") else 0.0
            scale = 0.25 if tensor.dim() <= 1 or is_norm else tensor.shape[-1] ** -0.5
            tensor.copy_(centre + scale * noise)
        if embedding_multiplier > 1:
            weight_of(model.get_input_embeddings()).div_(embedding_multiplier)


def convert_twin(
    config: MoebaConfig, family: Family, folder: Path
) -> tuple[PreTrainedModel, MoebaForCausalLM]:
    """A random native model as stock transformers writes it, and what the family's rows make of those files."""
    small = shrink_for(config, family)
    stock = AutoModelForCausalLM.from_config(family.to_native(small), dtype=torch.float32)
    randomise(stock, embedding_multiplier=small.embedding_multiplier)
    stock.tie_weights()
    stock.save_pretrained(folder)
    plan, moeba_config = plan_import(Checkpoint(folder))
    planned = PlannedTensors(plan)
    ours = MoebaForCausalLM(moeba_config)
    load_exactly(ours, {name: planned.read(name) for name in planned.tensors})
    return plain(stock), plain(ours)


def export_twin(
    config: MoebaConfig, family: Family, folder: Path
) -> tuple[MoebaForCausalLM, PreTrainedModel]:
    """A random Moeba model, and what stock transformers loads from the files that the family's rows make of it."""
    ours = MoebaForCausalLM(shrink_for(config, family))
    randomise(ours, embedding_multiplier=ours.config.embedding_multiplier)
    ours.tie_weights()
    state = dict(ours.state_dict().items())
    if ours.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    return plain(ours), native_twin(StateDict(state), ours.config, family, folder)


def native_twin(tensors: TensorSource, config: MoebaConfig, family: Family, folder: Path) -> PreTrainedModel:
    """What stock transformers loads from the files that the family's rows make of a Moeba model."""
    planned = PlannedTensors(plan_export(tensors, config, family))
    save_file(
        {name: planned.read(name) for name in planned.tensors}, folder / "model.safetensors", {"format": "pt"}
    )
    family.to_native(config).save_pretrained(folder)
    return load_model(folder)


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


def half_twins(
    one: PreTrainedModel, other: PreTrainedModel, folder: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The twins of `convert_twin` or `export_twin` in half precision, each as its library loads and holds it.

    Args:
        folder: where the native one of the two was written.
    """
    stock = load_model(folder, dtype=dtype)
    target_is_ours = isinstance(other, MoebaForCausalLM)
    if not target_is_ours:  # which an export fills with what ours holds, maybe in half precision
        round_to(stock, dtype)
    halved = folder / "half"
    stock.save_pretrained(halved)
    plan, _ = plan_import(Checkpoint(halved))
    planned = PlannedTensors(plan)
    config = copy.deepcopy((other if target_is_ours else one).config)
    ours = AutoModelForCausalLM.from_config(config, dtype=dtype)
    load_exactly(ours, {name: planned.read(name) for name in planned.tensors})
    return (stock, plain(ours)) if target_is_ours else (plain(ours), stock)


def round_to(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Leave no parameter a value that this precision does not hold, whatever precision it is held in."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)


def all_in_half(model: PreTrainedModel) -> PreTrainedModel | None:
    """A copy whose parameters are all in half precision, as `.to(dtype)` makes it; None if they are at loading."""
    if all(parameter.dtype == model.dtype for parameter in model.parameters()):
        return None
    cast = copy.deepcopy(model)
    for parameter in cast.parameters():
        parameter.data = parameter.data.to(model.dtype)
    return cast


def load_model(
    folder: Path, drops: Callable[[str], bool] = lambda name: False, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Any causal language model of a folder, with eager experts.

    Args:
        drops: whether a tensor carries nothing, so that the model may have no place for it.

    Raises:
        ValueError: transformers found missing, unexpected or misshapen tensors, which it would replace by random ones.
    """
    model: PreTrainedModel
    model, info = load_stock(
        AutoModelForCausalLM, folder, dtype=dtype, output_loading_info=True, local_files_only=True
    )
    wrong = {
        name: sorted(key for key in map(str, info[name]) if not drops(key))
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(wrong.values()):
        raise ValueError(f"{folder} does not load completely: {wrong}")
    return plain(model)


def plain(model: Model) -> Model:
    """The model in eval mode, in aligned memory, with the experts' plain computation.

    The fast ones want sizes that small models lack.
    """
    if has_experts(model) and can_set_experts(model):
        model.set_experts_implementation("eager")
    model.eval()
    return align(model)


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
        sizes: tuple[int, ...] = ()
        if config.is_heterogeneous:
            layer = layer_view(config, i)
            sizes = (layer.num_attention_heads, layer.num_key_value_heads, layer.num_experts_per_tok)
        kind = (config.layer_types[i], config.mlp_layer_types[i], config.rotary_layers[i], sizes)
        kinds.setdefault(kind, i)
    chosen = sorted(kinds.values())
    return chosen if len(chosen) > 1 or config.num_hidden_layers < 2 else [0, 1]


def _few_experts(config: Any) -> dict[str, Any]:
    """Twelve experts to choose from (ten sorts before two as text, and few would hide the bias that chooses)."""
    if config.n_group > 1:
        experts = config.n_group * min(config.num_experts // config.n_group, 3)
        chosen = min(config.num_experts_per_tok, config.topk_group * (experts // config.n_group))
    else:
        experts = 12 if config.num_experts_per_tok < config.num_experts else min(config.num_experts, 12)
        chosen = min(
            config.num_experts_per_tok, 3 if config.num_experts_per_tok < config.num_experts else experts
        )
    width, shared = 24, config.shared_expert_intermediate_size
    whole, rest = divmod(shared, config.moe_intermediate_size)
    return {
        "num_experts": experts,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": width,
        # So many times an expert's width, where it is a multiple.
        "shared_expert_intermediate_size": min(shared, 20) if rest else min(whole, 2) * width,
    }


def _short_rope(rope: dict[str, Any] | None, width: int, growing: bool) -> dict[str, Any] | None:
    """Rope settings with a short original context, for heads of which so many entries may rotate.

    Args:
        growing: queries grow beyond the original context, whatever the type of rope.
    """
    if not rope:
        return rope
    if any(isinstance(value, dict) for value in rope.values()):
        return {kind: _short_rope(value, width, growing) for kind, value in rope.items()}
    if rope.get("rope_type") == "longrope" or growing:  # others need not pass it to turn as they do
        rope["original_max_position_embeddings"] = ORIGINAL_CONTEXT
    rotated = int(width * rope.get("partial_rotary_factor", 1.0)) // 2
    if "partial_rotary_factor" in rope:  # a fraction of the small width is no even number by itself
        rotated = max(rotated, 1)
        rope["partial_rotary_factor"] = 2 * rotated / width
    for name in ("short_factor", "long_factor"):
        if name in rope:
            rope[name] = rope[name][:rotated]
    return rope

"""What moves in transformers: every undocumented, private or release-dependent name of it that Moeba reaches.

Each entry says what it hides and, where that changed, on which release and until when. What differs between releases
is asked for by feature, never by number, so that patch releases and backports are right too. This file travels with a
model's code: it needs transformers alone, and refuses a release outside the window before an import below could fail.

The imports are names that the documentation does not promise, and are the same in 5.23 and 5.24: the strict dataclass
behind configs, initialisation that skips loaded weights, activations by name, the interfaces of attention and experts,
masks (their parameter for the cache was renamed in 5.24), the generic heads and checkpointed layers, outputs (their
field for the cache likewise), rope by type, and the decorators that record outputs and fill in the config's defaults.
`tools/drift.py` tells when one of them moves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from .window import require_transformers

require_transformers()

# isort: split
import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2CLS, ACT2FN
from transformers.generation import GenerationMixin
from transformers.integrations import use_experts_implementation
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_masks_for_generate,
    create_sliding_window_causal_mask,
)
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.utils import can_return_tuple, logging
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import TransformersKwargs, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs
from transformers.utils.peft_utils import find_adapter_config_file

Function = TypeVar("Function", bound=Callable[..., Any])

# The base of a class that is mixed into a model: to a type checker, the model.
if TYPE_CHECKING:
    ModelMixin = PreTrainedModel
else:
    ModelMixin = object

# --- the KV cache ---
# Moeba's own name for it is the one of 5.23, where a keyword `cache` means the paged cache of continuous batching,
# which passes through to the attention interface. Once the window starts at 5.24, `cache` can be the only name: then
# `CACHE`, `takes_cache` and `cache_of` go.
PAST_KEY_VALUES = "past_key_values"
# What the installed library calls it in arguments, outputs and masks: `cache` since 5.24 (the old name goes in 5.40).
CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else PAST_KEY_VALUES


def takes_cache(function: Function) -> Function:
    """The library's door to a function whose parameter for the cache is `past_key_values`.

    Its signature shows the library's name. The old one is taken as the installed release's own models take it: with
    a FutureWarning since 5.24.

    Raises:
        ValueError: at a call that gives two caches, one by each name.
    """
    if CACHE == PAST_KEY_VALUES:
        return function

    @wraps(function)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if PAST_KEY_VALUES in kwargs:
            if CACHE not in kwargs:
                return by_old_name(*args, **kwargs)
            kwargs[CACHE] = _one_cache(kwargs[CACHE], kwargs.pop(PAST_KEY_VALUES))
        if CACHE in kwargs:
            kwargs[PAST_KEY_VALUES] = kwargs.pop(CACHE)
        return function(*args, **kwargs)

    signature = inspect.signature(function)
    shown = [p.replace(name=CACHE) if p.name == PAST_KEY_VALUES else p for p in signature.parameters.values()]
    renamed.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    by_old_name = deprecate_kwarg(PAST_KEY_VALUES, "5.40.0", new_name=CACHE)(renamed)
    return renamed  # type: ignore[return-value]


def _one_cache(new_name: Cache | None, old_name: Cache | None) -> Cache | None:
    """Of what came by both names the one that is a cache; stock models drop the old name's, with a warning."""
    if new_name is not None and old_name is not None:
        raise ValueError(f"{CACHE} and {PAST_KEY_VALUES} are one argument: give {CACHE} alone.")
    return old_name if new_name is None else new_name


def cache_of(outputs: Any) -> Cache | None:
    """The cache among a model's outputs."""
    return getattr(outputs, CACHE, None)


def has_cache(forward: Callable) -> bool:
    """Whether a stock model's forward takes a cache."""
    return CACHE in inspect.signature(forward).parameters


# --- keyword arguments of forward ---
# What the library's own models take without naming it: read by its decorators, its losses, its attention functions …
FORWARD_KWARGS = frozenset(TransformersKwargs.__annotations__) | {
    "return_dict",  # can_return_tuple, capture_outputs
    "shift_labels",  # the losses
    "ignore_index",
    "debug_io",  # merge_with_config_defaults
    "debug_io_dir",
    "prune_layers",
    "kernel_options",  # flex attention
    "deterministic",  # flash attention
    "token_type_ids",  # nobody: many tokenizers return them, and stock decoders ignore them
    "tokenizer",  # nobody: generate() passes its own on
}


def refuse_unread(kwargs: Mapping[str, Any], config: Any, owner: str) -> None:
    """Refuse keyword arguments that nothing would read: a mistyped or a renamed one must not vanish.

    An attention function that somebody registered may read any name, so there all pass, as in the stock models.

    Raises:
        TypeError: as Python does for a function without `**kwargs`.
    """
    if kwargs.keys() <= FORWARD_KWARGS:
        return
    implementation = attention_of(config)
    function = ALL_ATTENTION_FUNCTIONS.get(implementation)
    if function is not None and not function.__module__.startswith("transformers."):
        return
    read = set(inspect.signature(function).parameters) if function is not None else set()
    if is_continuous_batch(kwargs):
        read |= _continuous_batching_kwargs()
    unread = sorted(kwargs.keys() - FORWARD_KWARGS - read)
    if unread:
        raise TypeError(
            f"{owner}.forward() got an unexpected keyword argument {', '.join(map(repr, unread))}: neither the model "
            f"nor its attention ({implementation}) reads it."
        )


def is_continuous_batch(kwargs: Mapping[str, Any]) -> bool:
    """Whether continuous batching calls: texts are packed into one row, keys and values are in a paged cache."""
    return "write_index" in kwargs


def update_paged_cache(
    key: torch.Tensor, value: torch.Tensor, layer_idx: int, kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What 5.23 leaves to the attention function, which it hands the paged cache; since 5.24 the model has done it.

    It goes with 5.23.
    """
    cache = kwargs.pop("cache", None)
    return (key, value) if cache is None else cache.update(key, value, layer_idx, kwargs=kwargs)


@lru_cache(maxsize=1)
def _continuous_batching_kwargs() -> frozenset[str]:
    """What the paged cache and its attention functions are given (on 5.23 the cache itself, as `cache`)."""
    from transformers.generation.continuous_batching.input_outputs import PagedAttentionArgs

    return frozenset(PagedAttentionArgs.__annotations__)


# --- attention and experts implementations ---
# Private attributes of configs and classes, the same in 5.23 and 5.24: they can go once the library has public ones.
def attention_of(config: Any) -> str:
    """Name of the attention implementation that a model with this config runs."""
    return config._attn_implementation


def run_like(config: Any, other: Any) -> None:
    """Give a config, before a model is built from it, the attention and experts implementations of another one."""
    config._attn_implementation = other._attn_implementation
    config._experts_implementation = other._experts_implementation


def use_eager_experts(config: Any) -> None:
    """The same for the loop over experts, as modules that belong to no model have no `set_experts_implementation`."""
    config._experts_implementation = "eager"


def can_set_attention(model: PreTrainedModel) -> bool:
    """Whether the model's class has attention implementations to choose from; old stock classes have one."""
    return model._can_set_attn_implementation()


def can_set_experts(model: PreTrainedModel) -> bool:
    """The same for experts."""
    return model._can_set_experts_implementation()


def supports_sdpa(model: PreTrainedModel) -> bool:
    """Whether the class says that PyTorch's scaled dot product attention runs it."""
    return bool(model._supports_sdpa)


@contextmanager
def attention(implementation: str, *models: PreTrainedModel) -> Iterator[None]:
    """Run models on one attention implementation for a while."""
    before = [attention_of(model.config) for model in models]
    for model in models:
        model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        for model, old in zip(models, before, strict=True):
            model.set_attn_implementation(old)


class _MarkedModule(torch.nn.Module):
    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool
    is_transposed: bool
    is_concatenated: bool
    _apply_gate: Callable[[torch.Tensor], torch.Tensor]


class ExpertsModule(_MarkedModule):
    """For annotations: what `use_experts_implementation` gives an experts module, and what only some of them have."""

    act_fn: Callable[[torch.Tensor], torch.Tensor]
    post_expert_norm: Callable[[torch.Tensor], torch.Tensor]


def is_experts(module: torch.nn.Module) -> TypeGuard[ExpertsModule]:
    """Whether a module uses the experts interface."""
    return all(hasattr(module, mark) for mark in _MarkedModule.__annotations__)


def apply_gate(experts: ExpertsModule, inner: torch.Tensor) -> torch.Tensor:
    """What an experts module of the interface makes of its inner product."""
    return experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)


# --- generation ---
def generated(model: PreTrainedModel, prompt: torch.Tensor, **settings: Any) -> torch.Tensor:
    """What `generate()` makes of a prompt, `[rows, tokens]`: a model's class has it from another one than its own."""
    assert isinstance(model, GenerationMixin)
    found = model.generate(prompt, return_dict_in_generate=False, **settings)
    assert isinstance(found, torch.Tensor)
    return found


# --- training ---
def shift_smoothed_labels(model_type: str, class_name: str) -> None:
    """Have Trainer's label smoothing compare each place with the next token: it looks for the class by its name.

    It shifts the labels of the causal language models that a table of the library names, and lets those of any other
    model stand where they are. Of remote code too. The same in 5.23 and 5.24; it can go once a class can say so itself.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(model_type, class_name)


# --- names and fields ---
# `_name_or_path` and `_get_default_generation_params` are private, the same in 5.23 and 5.24.
def origin_of(config: Any) -> str | None:
    """Where a config was loaded from: a folder or a repository."""
    return config._name_or_path or None


def set_origin(config: Any, origin: str) -> None:
    config._name_or_path = origin


def generation_fields() -> set[str]:
    """Names of generation settings, which old configs carry."""
    return set(GenerationConfig._get_default_generation_params())


__all__ = [
    "ACT2CLS",
    "ACT2FN",
    "ALL_ATTENTION_FUNCTIONS",
    "ALL_EXPERTS_FUNCTIONS",
    "CACHE",
    "ExpertsModule",
    "FORWARD_KWARGS",
    "PAST_KEY_VALUES",
    "ROPE_INIT_FUNCTIONS",
    "Cache",
    "DynamicCache",
    "GenerationMixin",
    "GenericForQuestionAnswering",
    "GenericForSequenceClassification",
    "GenericForTokenClassification",
    "GradientCheckpointingLayer",
    "MoeCausalLMOutputWithPast",
    "ModelMixin",
    "MoeModelOutputWithPast",
    "OutputRecorder",
    "PreTrainedConfig",
    "PreTrainedModel",
    "StrictDataclassError",
    "apply_gate",
    "attention",
    "attention_of",
    "cache_of",
    "can_return_tuple",
    "can_set_attention",
    "can_set_experts",
    "capture_outputs",
    "create_bidirectional_mask",
    "create_bidirectional_sliding_window_mask",
    "create_causal_mask",
    "create_masks_for_generate",
    "create_sliding_window_causal_mask",
    "dynamic_rope_update",
    "find_adapter_config_file",
    "generated",
    "generation_fields",
    "has_cache",
    "init",
    "is_continuous_batch",
    "is_experts",
    "logging",
    "merge_with_config_defaults",
    "origin_of",
    "refuse_unread",
    "run_like",
    "set_origin",
    "shift_smoothed_labels",
    "slice_logits_to_keep",
    "strict",
    "supports_sdpa",
    "takes_cache",
    "update_paged_cache",
    "use_eager_experts",
    "use_experts_implementation",
]

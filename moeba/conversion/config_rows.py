"""Config rows: which fields of a native config are which fields of MoebaConfig, said once for both directions.

Every field of the native config is in exactly one row. Going out, the result is read back in, and any field of ours
that did not survive is named: nothing is approximated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig

from ..configuration import MoebaConfig
from .json_files import listing


class ConfigRow(Protocol):
    """Some of their fields and some of ours."""

    @property
    def theirs(self) -> tuple[str, ...]: ...

    def to_ours(self, native: Mapping[str, Any]) -> dict[str, Any]: ...

    def to_theirs(self, config: MoebaConfig) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Pair:
    """One field on each side; equal values, unless the two functions say otherwise."""

    their_name: str
    our_name: str
    ours_from: Callable[[Any], Any] = lambda value: value
    theirs_from: Callable[[Any], Any] = lambda value: value

    @property
    def theirs(self) -> tuple[str, ...]:
        return (self.their_name,)

    def to_ours(self, native: Mapping[str, Any]) -> dict[str, Any]:
        return {self.our_name: self.ours_from(native[self.their_name])}

    def to_theirs(self, config: MoebaConfig) -> dict[str, Any]:
        return {self.their_name: self.theirs_from(getattr(config, self.our_name))}


@dataclass(frozen=True)
class Computed:
    """Several fields on one side that only together say what several fields on the other side say."""

    theirs: tuple[str, ...]
    ours_from: Callable[[Mapping[str, Any]], dict[str, Any]]
    theirs_from: Callable[[MoebaConfig], dict[str, Any]]

    def to_ours(self, native: Mapping[str, Any]) -> dict[str, Any]:
        return self.ours_from(native)

    def to_theirs(self, config: MoebaConfig) -> dict[str, Any]:
        return self.theirs_from(config)


@dataclass(frozen=True)
class Fixed:
    """What the family always does and its config has no word for."""

    our_name: str
    value: Any
    theirs: tuple[str, ...] = ()

    def to_ours(self, native: Mapping[str, Any]) -> dict[str, Any]:
        return {self.our_name: self.value}

    def to_theirs(self, config: MoebaConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Inert:
    """A native field that does not change the function."""

    their_name: str
    reason: str

    @property
    def theirs(self) -> tuple[str, ...]:
        return (self.their_name,)

    def to_ours(self, native: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def to_theirs(self, config: MoebaConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Only:
    """A native field that Moeba supports at one value."""

    their_name: str
    value: Any
    reason: str

    @property
    def theirs(self) -> tuple[str, ...]:
        return (self.their_name,)

    def to_ours(self, native: Mapping[str, Any]) -> dict[str, Any]:
        if native[self.their_name] != self.value:
            raise ValueError(
                f"{self.their_name}={native[self.their_name]!r} is supported at {self.value!r} only: {self.reason}"
            )
        return {}

    def to_theirs(self, config: MoebaConfig) -> dict[str, Any]:
        return {self.their_name: self.value}


def pairs(*names: str) -> tuple[Pair, ...]:
    """Fields with the same name on both sides."""
    return tuple(Pair(name, name) for name in names)


# Fields of PreTrainedConfig itself, and of every language model.
COMMON: tuple[ConfigRow, ...] = (
    *pairs("vocab_size", "initializer_range", "use_cache", "tie_word_embeddings"),
    *pairs("bos_token_id", "eos_token_id", "pad_token_id", "dtype"),
    *pairs("id2label", "label2id", "problem_type"),
    Inert("architectures", "names the classes that wrote the checkpoint"),
    Inert("transformers_version", "names the library that wrote the checkpoint"),
    Inert("model_type", "names the family"),
    Inert("return_dict", "form of the outputs"),
    Inert("output_hidden_states", "form of the outputs"),
    Inert("chunk_size_feed_forward", "computes the feed-forward in slices of the sequence"),
    Only("is_encoder_decoder", False, "a decoder is expected"),
)

# Keys that old config.json files carry beside the fields of their class.
_LEFTOVERS = {
    "_name_or_path", "_attn_implementation_autoset", "_commit_hash", "auto_map", "n_ctx", "torch_dtype", "rope_theta",
    "rope_scaling", "partial_rotary_factor", "task_specific_params", "torchscript", "gradient_checkpointing",
    "use_bfloat16", "output_attentions", "output_past", "_num_labels", "num_labels", "transformers.js_config",
    "unsloth_version", "unsloth_fixed", "pretraining_tp", "finetuning_task", "is_llama_config", "prefix",
    "sep_token_id", "tf_legacy_loss", "tokenizer_class",
}  # fmt: skip
# Keys that old or foreign config.json files carry, at the value that means "not in use".
_UNUSED = {
    "add_cross_attention": False, "cross_attention_hidden_size": None, "is_decoder": False, "pruned_heads": {},
    "rope_interleaved": False, "tie_encoder_decoder": False,
}  # fmt: skip

# Fields of ours that change training or outputs, never the function that inference computes.
TRAINING_FIELDS = {
    "attention_dropout", "classifier_dropout", "embedding_dropout", "hidden_dropout", "initializer_range",
    "output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "router_z_loss_coef", "use_cache",
}  # fmt: skip
_METADATA_FIELDS = {
    "architectures", "auto_map", "chunk_size_feed_forward", "id2label", "label2id", "output_hidden_states",
    "problem_type", "return_dict", "transformers_version", "moeba_version",
}  # fmt: skip


def read_native_config(raw: Mapping[str, Any], rows: Sequence[ConfigRow]) -> PreTrainedConfig:
    """The stock config of a raw config.json, defaults filled in and old spellings brought up to date.

    Raises:
        ValueError: the stock class refuses it, or it has keys that neither that class nor the table knows.
    """
    config_class = CONFIG_MAPPING[raw["model_type"]]
    try:
        native = config_class.from_dict(copy.deepcopy(dict(raw)))
    except Exception as error:  # the library raises many kinds for one bad field
        raise ValueError(f"config.json is refused by {config_class.__name__}: {one_line(error)}") from error
    known = {field.name for field in fields(config_class)} | _LEFTOVERS | _mentioned(rows) | {"model_type"}
    known |= set(config_class.attribute_map) | set(config_class.attribute_map.values())
    known |= set(GenerationConfig._get_default_generation_params())
    known |= {name for name, unused in _UNUSED.items() if raw.get(name) == unused}
    unknown = sorted(f"{name}={raw[name]!r}" for name in raw if name not in known)
    if unknown:
        raise ValueError(
            f"config.json has fields that {config_class.__name__} does not know, so their meaning is unknown here: "
            f"{listing(unknown)}."
        )
    return native


def _mentioned(rows: Sequence[ConfigRow]) -> set[str]:
    return {name for row in (*COMMON, *rows) for name in row.theirs}


def to_moeba(rows: Sequence[ConfigRow], native: PreTrainedConfig) -> MoebaConfig:
    """Translate; one error lists every field that is not supported."""
    mentioned = _mentioned(rows)
    values = {name: copy.deepcopy(getattr(native, name, None)) for name in mentioned}
    ours: dict[str, Any] = {}
    problems: list[str] = []
    for row in (*COMMON, *rows):
        try:
            ours.update(row.to_ours(values))
        except ValueError as error:
            problems.append(str(error))
    problems += [
        f"{name}={getattr(native, name)!r} has no row in the table"
        for name in sorted(field.name for field in fields(native))
        if name not in mentioned and not name.startswith("_")
    ]
    if problems:
        raise ValueError(f"{native.model_type} config: {listing(problems, limit=50)}")
    try:
        return MoebaConfig(**ours)
    except Exception as error:
        raise ValueError(f"{native.model_type} config: {one_line(error)}") from error


def to_native(rows: Sequence[ConfigRow], model_type: str, config: MoebaConfig) -> PreTrainedConfig:
    """Translate out; refuse unless reading the result back gives the same function.

    Raises:
        ValueError: names every field of ours, with its value, that the native config cannot hold.
    """
    config_class = CONFIG_MAPPING[model_type]
    values: dict[str, Any] = {}
    for row in (*COMMON, *rows):
        values.update(row.to_theirs(config))
    labels = {name: values.pop(name) for name in ("id2label", "label2id")}
    if config.num_labels != 2:
        values.update(labels)
    try:
        native = config_class(**values)
        blocked = differences(config, to_moeba(rows, native))
    except Exception as error:
        raise ValueError(f"'{model_type}' cannot hold this model: {one_line(error)}") from error
    blocked = [difference for difference in blocked if difference.name not in TRAINING_FIELDS]
    if blocked:
        reasons = [f"{item.name}={item.first!r} (there: {item.second!r})" for item in blocked]
        raise ValueError(f"'{model_type}' cannot hold this model: {listing(reasons, limit=50)}")
    return native


@dataclass(frozen=True)
class Difference:
    """One field that two configs disagree on."""

    name: str
    first: Any
    second: Any


def differences(first: MoebaConfig, second: MoebaConfig) -> list[Difference]:
    """Fields of the model, not metadata, that differ; values that mean the same compare equal."""
    a, b = first.to_dict(), second.to_dict()
    names = sorted((set(a) | set(b)) - _METADATA_FIELDS - {"model_type"})
    found = []
    for name in names:
        if _idle(first, name) and _idle(second, name):
            continue
        if a.get(name) != b.get(name):
            found.append(Difference(name, a.get(name), b.get(name)))
    return found


def _idle(config: MoebaConfig, name: str) -> bool:
    """Whether a field has nothing to act on in this config."""
    if name == "sliding_window":
        return "sliding_attention" not in config.layer_types
    if name == "attention_multiplier":
        return config.attention_multiplier in (None, config.head_dim**-0.5)
    if name == "moe_intermediate_size" or name in _ROUTER_FIELDS:
        return not config.sparse_layers
    if name == "intermediate_size":
        return bool(config.mlp_layer_types) and "dense" not in config.mlp_layer_types
    if name == "mlp_bias":
        return bool(config.sparse_layers) and "dense" not in config.mlp_layer_types
    return False


_ROUTER_FIELDS = {
    "num_experts_per_tok", "expert_bias", "scoring_func", "norm_topk_prob", "norm_topk_eps", "n_group", "topk_group",
    "router_selection_bias", "shared_expert_intermediate_size", "shared_expert_gate", "routed_scaling_factor",
    "router_bias", "router_matmul_dtype", "router_weight_dtype",
}  # fmt: skip


def one_line(error: BaseException) -> str:
    """An exception's text on one line."""
    return " ".join(str(error).split())

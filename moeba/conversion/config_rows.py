"""Config rows: which fields of a native config are which fields of MoebaConfig, said once for both directions.

Every field of the native config is in exactly one row. Going out, the result is read back in, and any field of ours
that did not survive is named: nothing is approximated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..configuration import MoebaConfig
from ..configuration.rope_rules import mistyped_rope_keys, two_ropes
from ..library.upstream import generation_fields
from ..library.window import is_newer_than_installed
from .config_differences import TRAINING_FIELDS, differences
from .json_files import listing
from .sizes import check_sizes


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
    "sep_token_id", "tf_legacy_loss", "tokenizer_class", "cache_implementation",
}  # fmt: skip
# Keys that old or foreign config.json files carry, at the value that means "not in use".
_UNUSED = {
    "add_cross_attention": False, "cross_attention_hidden_size": None, "is_decoder": False, "pruned_heads": {},
    "rope_interleaved": False, "tie_encoder_decoder": False,
}  # fmt: skip


def read_native_config(
    raw: Mapping[str, Any], rows: Sequence[ConfigRow], leftovers: Collection[str] = ()
) -> PreTrainedConfig:
    """The stock config of a raw config.json, defaults filled in and old spellings brought up to date.

    Args:
        leftovers: keys that the family's old config.json files carry and that no stock code reads.

    Raises:
        ValueError: the stock class refuses it, or it has keys that neither that class nor the table knows, and no
            later transformers than the installed one wrote it.
    """
    config_class = CONFIG_MAPPING[raw["model_type"]]
    check_sizes(raw)
    if twofold := contradicting_spellings(raw, config_class):
        raise ValueError(f"config.json contradicts itself: {listing(twofold)}.")
    if slips := mistyped_rope_keys(raw.get("rope_scaling") or raw.get("rope_parameters")):
        raise ValueError(f"config.json has rope settings that nothing reads: {listing(slips)}.")
    try:
        native = config_class.from_dict(copy.deepcopy(dict(raw)))
    except Exception as error:  # the library raises many kinds for one bad field
        raise ValueError(f"config.json is refused by {config_class.__name__}: {one_line(error)}") from error
    unknown = unknown_fields(raw, rows, leftovers)
    if unknown and not is_newer_than_installed(raw.get("transformers_version")):
        raise ValueError(
            f"config.json has fields that {config_class.__name__} does not know, so their meaning is unknown here: "
            f"{listing(unknown)}."
        )
    return native


def contradicting_spellings(raw: Mapping[str, Any], config_class: type[PreTrainedConfig]) -> list[str]:
    """Fields that stand in a config.json under two names with two values: the stock class would take either."""
    names = {"torch_dtype": "dtype", **config_class.attribute_map}
    found = [
        f"{alias}={raw[alias]!r} and {name}={raw[name]!r} are one field"
        for alias, name in names.items()
        if raw.get(alias) is not None and raw.get(name) is not None and raw[alias] != raw[name]
    ]
    own = field_names(
        config_class
    )  # where these are fields of their own, the class's code knows which one counts
    olds = {name: value for name, value in raw.items() if name not in own}
    return [*found, *two_ropes(olds, raw.get("rope_parameters"))]


def unknown_fields(
    raw: Mapping[str, Any], rows: Sequence[ConfigRow], leftovers: Collection[str] = ()
) -> list[str]:
    """`name=value` of each key of a config.json that neither the stock class nor the table knows."""
    return _unknown(raw, CONFIG_MAPPING[raw["model_type"]], {*_mentioned(rows), *leftovers})


def _unknown(raw: Mapping[str, Any], config_class: type[Any], known: set[str]) -> list[str]:
    """Keys and values that mean nothing to the class, nor to the one of a nested config."""
    found = []
    for name, nested in config_class.sub_configs.items():
        prefix = f"{name}."
        inner = {key.removeprefix(prefix) for key in known if key.startswith(prefix)}
        if isinstance(raw.get(name), Mapping) and hasattr(nested, "attribute_map"):
            found += [prefix + item for item in _unknown(raw[name], nested, inner)]
    known = {field.name for field in fields(config_class)} | _LEFTOVERS | known | {"model_type"}
    known |= set(config_class.attribute_map) | set(config_class.attribute_map.values())
    known |= generation_fields()
    known |= {name for name, unused in _UNUSED.items() if raw.get(name) == unused}
    return sorted(found + [f"{name}={raw[name]!r}" for name in raw if name not in known])


def field_names(config_class: type[Any]) -> set[str]:
    """The fields of a native config class; those of a nested config have dotted names, like `attn_config.alibi`."""
    found = {field.name for field in fields(config_class)}
    for name, nested in config_class.sub_configs.items():
        if name in found and is_dataclass(nested):
            own = {field.name for field in fields(nested)} - {
                field.name for field in fields(PreTrainedConfig)
            }
            found = (found - {name}) | {f"{name}.{inner}" for inner in own}
    return found


def value_of(native: PreTrainedConfig, name: str) -> Any:
    """A field's value, by its dotted name; None where the config has no such field."""
    for part in name.split("."):
        native = getattr(native, part, None)
    return native


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as dicts in dicts."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        outer, _, inner = name.partition(".")
        if inner:
            result.setdefault(outer, {})[inner] = value
        else:
            result[name] = value
    return result


def _applies(row: ConfigRow, config_class: type) -> bool:
    """Whether a class has the field of a common row; some have none for what only training or generation asks."""
    return row not in COMMON or not set(row.theirs) & (TRAINING_FIELDS - field_names(config_class))


def _mentioned(rows: Sequence[ConfigRow]) -> set[str]:
    return {name for row in (*COMMON, *rows) for name in row.theirs}


def to_moeba(rows: Sequence[ConfigRow], native: PreTrainedConfig) -> MoebaConfig:
    """Translate; one error lists every field that is not supported."""
    mentioned = _mentioned(rows)
    values = {name: copy.deepcopy(value_of(native, name)) for name in mentioned}
    ours: dict[str, Any] = {}
    problems: list[str] = []
    for row in (*COMMON, *rows):
        if not _applies(row, type(native)):
            continue
        try:
            ours.update(row.to_ours(values))
        except ValueError as error:
            problems.append(str(error))
    problems += [
        f"{name}={value_of(native, name)!r} has no row in the table"
        for name in sorted(field_names(type(native)) - mentioned)
        if not name.startswith("_")
    ]
    if problems:
        raise ValueError(f"{native.model_type} config: {listing(problems, limit=50)}")
    try:
        return MoebaConfig.from_dict(ours)  # a native config may say what has nothing to act on
    except Exception as error:
        raise ValueError(f"{native.model_type} config: {one_line(error)}") from error


def defaults_of(rows: Sequence[ConfigRow], native: PreTrainedConfig) -> dict[str, Any]:
    """Our fields that a stock config decides row by row; rows that refuse its values decide nothing.

    A stock class's defaults need not be a model that works, or one that is supported.
    """
    values = {name: copy.deepcopy(value_of(native, name)) for name in _mentioned(rows)}
    ours: dict[str, Any] = {}
    for row in rows:
        with suppress(ValueError):
            ours.update(row.to_ours(values))
    return ours


def to_native(rows: Sequence[ConfigRow], model_type: str, config: MoebaConfig) -> PreTrainedConfig:
    """Translate out; refuse unless reading the result back gives the same function.

    Raises:
        ValueError: names every field of ours, with its value, that the native config cannot hold.
    """
    config_class = CONFIG_MAPPING[model_type]
    values: dict[str, Any] = {}
    try:
        for row in (*COMMON, *rows):
            if _applies(row, config_class):
                values.update(row.to_theirs(config))
    except RuntimeError as error:  # a field that layers differ in was read as if it were one for all
        uneven = [
            f"{name}={[getattr(layer, name) for layer in config.per_layer_config]} (there: one for all layers)"
            for name in sorted(config.per_layer_attributes or ())
        ]
        if not uneven:
            raise
        raise ValueError(f"'{model_type}' cannot hold this model: {listing(uneven, limit=50)}") from error
    labels = {name: values.pop(name) for name in ("id2label", "label2id")}
    if config.num_labels != 2:
        values.update(labels)
    try:
        # A copy, as the class writes into the dicts that it is given.
        native = config_class(**_nested(copy.deepcopy(values)))
        blocked = differences(config, to_moeba(rows, native))
    except Exception as error:
        raise ValueError(f"'{model_type}' cannot hold this model: {one_line(error)}") from error
    blocked = [difference for difference in blocked if difference.name not in TRAINING_FIELDS]
    if blocked:
        reasons = [f"{item.name}={item.first!r} (there: {item.second!r})" for item in blocked]
        raise ValueError(f"'{model_type}' cannot hold this model: {listing(reasons, limit=50)}")
    return native


def one_line(error: BaseException) -> str:
    """An exception's text on one line."""
    return " ".join(str(error).split())

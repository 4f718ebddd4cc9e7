"""Config rows: which fields of a native config are which fields of MoebaConfig, said once for both directions.

Every field of the native config is in exactly one row. Going out, the result is read back in, and any field of ours
that did not survive is named: nothing is approximated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..configuration import MoebaConfig
from ..configuration.rope_rules import mistyped_rope_keys, two_ropes
from .config_differences import TRAINING_FIELDS, Difference, differences
from .json_files import listing
from .sizes import check_sizes


class ConfigRow(Protocol):
    """Some of their fields and some of ours."""

    @property
    def theirs(self) -> tuple[str, ...]: ...

    def to_ours(self, native: Mapping[str, Any]) -> dict[str, Any]: ...

    def to_theirs(self, config: MoebaConfig) -> dict[str, Any]: ...


class _OfOneField:
    """What rows about a single native field share."""

    their_name: str

    @property
    def theirs(self) -> tuple[str, ...]:
        return (self.their_name,)


@dataclass(frozen=True)
class Pair(_OfOneField):
    """One field on each side; equal values, unless the two functions say otherwise."""

    their_name: str
    our_name: str
    ours_from: Callable[[Any], Any] = lambda value: value
    theirs_from: Callable[[Any], Any] = lambda value: value

    def to_ours(self, native: Mapping[str, Any]) -> dict[str, Any]:
        return {self.our_name: self.ours_from(native[self.their_name])}

    def to_theirs(self, config: MoebaConfig) -> dict[str, Any]:
        return {self.their_name: self.theirs_from(getattr(config, self.our_name, None))}


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
class Inert(_OfOneField):
    """A native field that does not change the function."""

    their_name: str
    reason: str

    def to_ours(self, native: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def to_theirs(self, config: MoebaConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Only(_OfOneField):
    """A native field that Moeba supports at one value."""

    their_name: str
    value: Any
    reason: str

    def to_ours(self, native: Mapping[str, Any]) -> dict[str, Any]:
        if native[self.their_name] != self.value:
            raise ValueError(
                f"{self.their_name}={native[self.their_name]!r} is supported at {self.value!r} only: {self.reason}"
            )
        return {}

    def to_theirs(self, config: MoebaConfig) -> dict[str, Any]:
        return {self.their_name: self.value}


@dataclass(frozen=True)
class Stated(_OfOneField):
    """A key that engines or the checkpoint's own code read, and stock transformers does not.

    Attributes:
        value: what every export says; or a function of our config that gives it.
        why: who reads it, and for what.
        required: a config.json that has the key may say nothing else.
    """

    their_name: str
    value: Any
    why: str
    required: bool = True

    def to_ours(self, native: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def to_theirs(self, config: MoebaConfig) -> dict[str, Any]:
        value = self.value(config) if callable(self.value) else self.value
        return {} if value is None else {self.their_name: value}

    def contradiction(self, given: Any, config: MoebaConfig) -> str | None:
        """What is wrong with a config.json that says something else; None if nothing is."""
        (says,) = self.to_theirs(config).values() or (None,)
        unused = given is None or (given is False and not isinstance(says, bool))
        if not self.required or unused or given == says:
            return None
        said = f"{self.their_name}={given!r} is supported at {says!r} only"
        return f"{said}, which the stock model always does: {self.why}"


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


def read_native_config(raw: Mapping[str, Any]) -> PreTrainedConfig:
    """The stock config of a raw config.json, defaults filled in and old spellings brought up to date.

    Raises:
        ValueError: the stock class refuses it.
    """
    config_class = CONFIG_MAPPING[raw["model_type"]]
    check_sizes(raw)
    if twofold := contradicting_spellings(raw, config_class):
        raise ValueError(f"config.json contradicts itself: {listing(twofold)}.")
    if slips := mistyped_rope_keys(raw.get("rope_scaling") or raw.get("rope_parameters")):
        raise ValueError(f"config.json has rope settings that nothing reads: {listing(slips)}.")
    try:
        return config_class.from_dict(copy.deepcopy(dict(raw)))
    except Exception as error:  # the library raises many kinds for one bad field
        raise ValueError(f"config.json is refused by {config_class.__name__}: {one_line(error)}") from error


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
    value: Any = native
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


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


def mentioned(rows: Sequence[ConfigRow]) -> set[str]:
    """Names of the native fields that rows know, those that all families share included."""
    return {name for row in (*COMMON, *rows) for name in row.theirs}


def to_moeba(rows: Sequence[ConfigRow], native: PreTrainedConfig) -> MoebaConfig:
    """Translate; one error lists every field that is not supported."""
    known = mentioned(rows)
    values = {name: copy.deepcopy(value_of(native, name)) for name in known}
    ours: dict[str, Any] = {}
    problems: list[str] = []
    for row in (*COMMON, *rows):
        if not _applies(row, type(native)):
            continue
        try:
            ours.update(row.to_ours(values))
        except ValueError as error:
            problems.append(str(error))
        except ArithmeticError as error:  # a number that a root or a share is taken of
            given = ", ".join(f"{name}={values[name]!r}" for name in row.theirs)
            problems.append(f"{given} gives no number ({one_line(error)})")
    problems += [
        f"{name}={value_of(native, name)!r} has no row in the table"
        for name in sorted(field_names(type(native)) - known)
        if not name.startswith("_")
    ]
    if problems:
        raise ValueError(f"{native.model_type} config: {listing(problems)}")
    try:
        config = MoebaConfig.from_dict(ours)  # a native config may say what has nothing to act on
    except Exception as error:
        raise ValueError(f"{native.model_type} config: {one_line(error)}") from error
    stated = (row for row in rows if isinstance(row, Stated))
    problems = [problem for row in stated if (problem := row.contradiction(values[row.their_name], config))]
    if problems:
        raise ValueError(f"{native.model_type} config: {listing(problems)}")
    return config


def defaults_of(rows: Sequence[ConfigRow], native: PreTrainedConfig) -> dict[str, Any]:
    """Our fields that a stock config decides row by row; rows that refuse its values decide nothing.

    A stock class's defaults need not be a model that works, or one that is supported.
    """
    values = {name: copy.deepcopy(value_of(native, name)) for name in mentioned(rows)}
    ours: dict[str, Any] = {}
    for row in rows:
        with suppress(ValueError):
            ours.update(row.to_ours(values))
    return ours


class CannotHold(ValueError):
    """A family has no place for fields of a model.

    Attributes:
        obstacles: every field, with its value, and what it is there.
    """

    def __init__(self, model_type: str, obstacles: Sequence[str]) -> None:
        super().__init__(f"'{model_type}' cannot hold this model: {listing(obstacles)}")
        self.obstacles = obstacles


def to_native(rows: Sequence[ConfigRow], model_type: str, config: MoebaConfig) -> PreTrainedConfig:
    """Translate out; refuse unless reading the result back gives the same function.

    Raises:
        ValueError: names every field of ours, with its value, that the native config cannot hold.
    """
    native = nearest_native(rows, model_type, config)
    try:
        back = to_moeba(rows, native)
    except ValueError as error:
        raise ValueError(f"'{model_type}' cannot hold this model: {one_line(error)}") from error
    blocked = [item for item in differences(config, back) if item.name not in TRAINING_FIELDS]
    if blocked:
        raise CannotHold(model_type, [_told(item) for item in blocked])
    return native


def nearest_native(rows: Sequence[ConfigRow], model_type: str, config: MoebaConfig) -> PreTrainedConfig:
    """What the rows make of a config, which need not have the same function.

    Raises:
        ValueError: the rows, or the native class, make nothing of it.
    """
    config_class = CONFIG_MAPPING[model_type]
    values: dict[str, Any] = {}
    stated: dict[str, Any] = {}
    try:
        for row in (*COMMON, *rows):
            if _applies(row, config_class):
                (stated if isinstance(row, Stated) else values).update(row.to_theirs(config))
    except RuntimeError as error:  # a field that layers differ in was read as if it were one for all
        uneven = [
            f"{name}={[getattr(layer, name) for layer in config.per_layer_config]} (there: one for all layers)"
            for name in sorted(config.per_layer_attributes or ())
        ]
        if not uneven:
            raise
        raise CannotHold(model_type, uneven) from error
    except (ValueError, ArithmeticError) as error:
        told = (
            one_line(error)
            if isinstance(error, ValueError)
            else f"{row.theirs} would be no numbers ({error})"
        )
        raise ValueError(f"'{model_type}' cannot hold this model: {told}") from error
    labels = {name: values.pop(name) for name in ("id2label", "label2id")}
    if config.num_labels != 2:
        values.update(labels)
    try:
        # A copy, as the class writes into the dicts that it is given.
        native = config_class(**_nested(copy.deepcopy(values)))
    except Exception as error:
        raise ValueError(f"'{model_type}' cannot hold this model: {one_line(error)}") from error
    for name, value in stated.items():  # afterwards, as the class takes some away that it is given
        setattr(native, name, value)
    return native


def with_numbers_of(back: MoebaConfig, model_type: str, config: MoebaConfig) -> MoebaConfig:
    """`config` with its numbers as a family derives them, whose reading of it `back` is.

    Raises:
        CannotHold: something of the function other than a number differs.
    """
    changed = [
        _told(item)
        for item in differences(config, back)
        if item.name not in TRAINING_FIELDS and not (_is_number(item.first) and _is_number(item.second))
    ]
    if changed:
        raise CannotHold(model_type, changed)
    kept = {name: getattr(config, name) for name in TRAINING_FIELDS}
    return MoebaConfig.from_dict({**back.to_dict(), **kept})


def _told(item: Difference) -> str:
    return f"{item.name}={item.first!r} (there: {item.second!r})"


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def one_line(error: BaseException) -> str:
    """An exception's text on one line."""
    return " ".join(str(error).split())

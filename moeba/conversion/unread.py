"""What a native config.json says beside what the stock model computes: kept, and said again at export.

Such are keys that no stock code reads, and fields without effect on a causal language model. They lie in
`MoebaConfig.native_fields` under the family that they came from, so that they are no attributes which code could read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..configuration import MoebaConfig
from ..library.native_models import SHARED_READS, undeclared_reads
from ..library.upstream import generation_fields
from .claims import CLAIMED, refused
from .config_differences import differences
from .config_rows import ConfigRow, Stated, field_names, mentioned, read_native_config, to_moeba, value_of
from .json_files import listing

# What the library itself takes from a config.json: other spellings of fields, and how a model is loaded.
_SPELLINGS = {
    "_attn_implementation", "_attn_implementation_internal", "_commit_hash", "_experts_implementation",
    "_experts_implementation_internal", "_name_or_path", "_num_labels", "attn_implementation", "auto_map",
    "experts_implementation", "model_type", "name_or_path", "num_labels", "output_attentions",
    "partial_rotary_factor", "quantization_config", "rope_scaling", "rope_theta", "torch_dtype",
}  # fmt: skip
# Fields that are written anew, or that lie in Moeba's config in other words.
_OWN = {
    "architectures", "dtype", "id2label", "label2id", "layer_types", "mlp_layer_types", "model_type", "problem_type",
    "transformers_version",
}  # fmt: skip
_SHOWN = 60  # characters of a value in a line


def unread_keys(raw: Mapping[str, Any], rows: Sequence[ConfigRow]) -> dict[str, Any]:
    """Keys of a config.json that neither the stock class nor the table knows; those of a nested config are dotted."""
    return _unread(raw, CONFIG_MAPPING[raw["model_type"]], mentioned(rows))


def _unread(raw: Mapping[str, Any], config_class: type[Any], known: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, nested in config_class.sub_configs.items():
        prefix = f"{name}."
        inner = {key.removeprefix(prefix) for key in known if key.startswith(prefix)}
        if isinstance(raw.get(name), Mapping) and hasattr(nested, "attribute_map"):
            found |= {prefix + key: value for key, value in _unread(raw[name], nested, inner).items()}
    known = {field.name for field in fields(config_class)} | known | _SPELLINGS | generation_fields()
    known |= set(config_class.attribute_map) | set(config_class.attribute_map.values())
    return found | {name: value for name, value in raw.items() if name not in known}


def reported(keys: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Those of the unread keys that have a value, and that no stock code reads undeclared."""
    read = undeclared_reads(model_type) | SHARED_READS.keys() | {"gradient_checkpointing"}
    return {name: value for name, value in keys.items() if value is not None and name not in read}


def shown(keys: Mapping[str, Any]) -> str:
    """`name=value` of each key on one line; long values are cut."""
    texts = {name: repr(value) for name, value in keys.items()}
    return ", ".join(
        f"{name}={text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"
        for name, text in sorted(texts.items())
    )


def check_unread(
    unread: Mapping[str, Any], model_type: str, config: MoebaConfig, *, interleaved: bool, strict: bool
) -> None:
    """Refuse keys by which another function may be meant.

    Args:
        config: what the stock model computes.
        interleaved: it rotates neighbouring entries together.
        strict: refuse all that have a value.

    Raises:
        ValueError: names each with its value and what it means.
    """
    class_name = CONFIG_MAPPING[model_type].__name__
    said = {name: value for name, value in unread.items() if value is not None}
    if strict and said:
        raise ValueError(
            f"config.json has fields that {class_name} does not know, which are refused where nothing may be left "
            f"out (strict): {listing([shown({name: said[name]}) for name in sorted(said)])}."
        )
    acted_on = (undeclared_reads(model_type) | SHARED_READS.keys()) - CLAIMED
    problems = refused(said, config, interleaved) + [
        f"{shown({name: value})} (stock code reads it, and there is no row for it)"
        for name, value in said.items()
        if name in acted_on and value is not False and not name.startswith("_")
    ]
    if problems:
        raise ValueError(
            f"config.json has fields that {class_name} does not know, and that mean another function: "
            f"{listing(problems)}."
        )


def keep(
    native: PreTrainedConfig, back: PreTrainedConfig, rows: Sequence[ConfigRow], unread: Mapping[str, Any]
) -> dict[str, Any]:
    """What an export of the model would not say by itself.

    Args:
        back: what the rows make of the model, without it.
    """
    stated = {name for row in rows if isinstance(row, Stated) for name in row.theirs}
    found = {
        name: copy.deepcopy(value_of(native, name))
        for name in sorted((field_names(type(native)) | mentioned(rows)) - _OWN - _SPELLINGS - stated)
        if not name.startswith("_") and value_of(native, name) != value_of(back, name)
    }
    return found | {name: copy.deepcopy(value) for name, value in unread.items() if name not in stated}


def restore(
    native: PreTrainedConfig, kept: Mapping[str, Any], rows: Sequence[ConfigRow], interleaved: bool = False
) -> None:
    """Say again what was kept, but for what would change the function: the model may have changed meanwhile.

    Args:
        native: what the rows made of the model; it is changed.
    """
    if not kept:
        return
    config = _as_reread(native, rows)
    unread = unread_keys({"model_type": native.model_type, **kept}, rows)
    meant = {
        name: value
        for name, value in kept.items()
        if name not in unread
        or not (hasattr(type(native), name) or refused({name: value}, config, interleaved))
    }
    if not _said(native, meant, config, rows):  # some of it: the rest belongs to the model as it was
        for name, value in meant.items():
            _said(native, {name: value}, config, rows)


def _as_reread(native: PreTrainedConfig, rows: Sequence[ConfigRow]) -> MoebaConfig:
    """What a config means once it lies in a file, whose fields the class weighs against each other when it is made."""
    return to_moeba(rows, read_native_config(native.to_dict()))


def _place(native: PreTrainedConfig, name: str) -> tuple[Any, str]:
    """The config that has a key, and its name there: a dot leads into a nested config, or is part of the name."""
    outer, _, inner = name.partition(".")
    return (getattr(native, outer), inner) if inner and outer in type(native).sub_configs else (native, name)


def _said(
    native: PreTrainedConfig, values: Mapping[str, Any], config: MoebaConfig, rows: Sequence[ConfigRow]
) -> bool:
    """Set fields, if the function stays that of `config`."""
    before = []
    for name, value in values.items():
        owner, field = _place(native, name)
        before.append((owner, field, field in vars(owner), getattr(owner, field, None)))
        try:
            setattr(owner, field, copy.deepcopy(value))
        except Exception:  # the library raises many kinds for a value that does not fit
            break
    else:
        with suppress(ValueError):
            if not differences(config, _as_reread(native, rows)):
                return True
    for owner, field, there, old in reversed(before):
        setattr(owner, field, old) if there else vars(owner).pop(field, None)
    return False

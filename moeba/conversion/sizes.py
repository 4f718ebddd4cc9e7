"""Sizes that a config states against the tensors that are there, before anything is built from either.

A config of a thousand bytes can ask for 10^12 layers: stock config classes make a list of that length at once. Each
layer and each expert has tensors of its own or rows in one, and each width is a dimension, so a checkpoint's headers
bound them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING

from ..configuration import MoebaConfig
from ..configuration.messages import short
from ..configuration.ranges import MOST_EXPERTS, MOST_LABELS, MOST_LAYERS
from .json_files import listing
from .weight_files import TensorInfo

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_SIZE = re.compile(
    r"^(num|n|d)_|(^|_)(size|dim|rank|heads?|layers?|experts?|groups?|per_tok|inner|embd|width)$",
    re.IGNORECASE,
)
# Lengths of text, names of tokens: no tensor bounds them.
_NO_SIZE = re.compile(r"position|ctx|context|window|token_id|seq|length|chunk|logits|labels", re.IGNORECASE)


_OBJECT, _NAME = (Mapping, "JSON object"), (str | Mapping, "name of an implementation")
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(
        (
            "quantization_config",
            "auto_map",
            "rope_parameters",
            "rope_scaling",
            "text_config",
            "per_layer_config",
        ),
        _OBJECT,
    ),
    **dict.fromkeys(
        ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"),
        _NAME,
    ),
}


def check_names(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config.json whose fields that every reader looks at are of the wrong kind.

    Raises:
        ValueError: names the field and its value.
    """
    for name, (kind, words) in _KINDS.items():
        if not isinstance(value := config.get(name), kind | None):
            raise ValueError(f"{where} has {name}={short(value)}, which is no {words}")
    uneven = config.get("per_layer_config") or {}
    if not all(isinstance(sizes, Mapping) for sizes in uneven.values()):
        raise ValueError(f"{where} has per_layer_config={short(uneven)}, which holds no JSON object a layer")
    classes = config.get("architectures")
    if not isinstance(name := config.get("model_type", ""), str) or len(name) > 100:
        raise ValueError(
            f"{where} has model_type={short(config['model_type'])}, which is no name of a family"
        )
    if classes is not None and not (
        isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    ):
        raise ValueError(f"{where} has architectures={short(classes)}, which is no list of names")


def check_sizes(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo] | None = None, where: str = "config.json"
) -> None:
    """Refuse counts and widths that the checkpoint cannot have.

    Fields that a model does not use may hold anything that some model has, so there is room above what is there.

    Args:
        config: a config.json, native or Moeba's.
        tensors: the checkpoint's, by name; without them only what no model has is refused.

    Raises:
        ValueError: names each field and value.
    """
    labels = config.get("num_labels")  # the library makes a name for each
    if isinstance(labels, int | float) and not 0 <= labels <= MOST_LABELS:
        raise ValueError(f"{where} has num_labels={short(labels)}: at most {MOST_LABELS} are taken")
    if tensors is None:
        layers, most, known = MOST_LAYERS, 2**31 - 1, "more than any model has"
    else:
        largest = max((max(info.shape, default=1) for info in tensors.values()), default=1)
        layers, most = len(tensors), max(MOST_EXPERTS, len(tensors), largest)
        known = f"the checkpoint has {len(tensors)} tensors, and {largest} is their largest dimension"
    found = [
        f"{name}={short(value)}"
        for name, value in _sizes(config)
        if value > (layers if name.rpartition(".")[2] in _LAYERS else most)
    ]
    if found:
        raise ValueError(f"{where} does not fit its weights: {listing(found)} ({known})")


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Numbers that count or measure something, of fields that the model's class has: other keys build nothing."""
    model_type = config.get("model_type")
    if model_type == MoebaConfig.model_type:
        yield from _sizes_of(MoebaConfig, config)
    elif isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        yield from _sizes_of(CONFIG_MAPPING[model_type], config)


def _sizes_of(
    config_class: Any, config: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, int | float]]:
    own = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    for name, value in config.items():
        nested = config_class.sub_configs.get(name)
        if isinstance(value, Mapping) and hasattr(nested, "attribute_map"):
            yield from _sizes_of(nested, value, f"{name}.")
        elif name not in own or not isinstance(value, int | float):
            continue
        elif _SIZE.search(name) and not _NO_SIZE.search(name):
            yield prefix + name, value

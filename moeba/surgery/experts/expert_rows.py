"""Tensors that have a row for each expert, and plans that pick among these rows."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ...configuration import MoebaConfig
from ...configuration.model_facts import layer_view
from ...conversion.checkpoint import TensorSource
from ...conversion.config_rows import one_line
from ...conversion.plan import Plan, config_json, moeba_shapes
from ...conversion.shards import Recipe
from ...conversion.weight_files import TensorInfo

FEED_FORWARD = "model.layers.{layer}.mlp."
# What becomes of one row: `(part, layer, new expert, [1, ...]) -> [1, ...]`.
Change = Callable[[str, int, int, torch.Tensor], torch.Tensor]


def place(name: str) -> tuple[int, str]:
    """Layer and part of a feed-forward's tensor, such as `(3, "gate.weight")`; `(-1, name)` for any other."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.(.+)", name)
    return (int(match[1]), match[2]) if match else (-1, name)


def has_expert_rows(part: str) -> bool:
    """Whether a part of a sparse feed-forward has a row for each routed expert."""
    return part.startswith("gate.") or (
        part.startswith("experts.") and not part.startswith("experts.act_fn.")
    )


def require_experts(config: MoebaConfig, verb: str) -> None:
    """
    Raises:
        ValueError: the model is dense.
    """
    if not config.sparse_layers:
        raise ValueError(
            f"the source has no experts to {verb}: it is a dense model. Upcycle it first (moeba upcycle)."
        )


def stored_dtypes(tensors: TensorSource) -> set[torch.dtype]:
    """Of the experts' down projections."""
    return {info.dtype for name, info in tensors.tensors.items() if name.endswith("experts.down_proj")}


def sizes(config: MoebaConfig, field: str) -> dict[int, Any]:
    """A field of each sparse layer."""
    return {layer: getattr(layer_view(config, layer), field) for layer in config.sparse_layers}


def set_sizes(values: dict[str, Any], field: str, by_layer: Mapping[int, Any]) -> None:
    """Write a field of some layers into a config's values: the commonest for all, the others layer by layer."""
    uneven = {int(layer): dict(own) for layer, own in (values.pop("per_layer_config", None) or {}).items()}
    values[field] = Counter(by_layer.values()).most_common(1)[0][0]
    for layer, own in uneven.items():
        if layer in by_layer:
            own.pop(field, None)
    for layer, value in by_layer.items():
        if value != values[field]:
            uneven.setdefault(layer, {})[field] = value
    if kept := {layer: own for layer, own in uneven.items() if own}:
        values["per_layer_config"] = kept


def build_config(values: Mapping[str, Any]) -> MoebaConfig:
    """
    Raises:
        ValueError: the values contradict each other.
    """
    try:
        return MoebaConfig.from_dict(copy.deepcopy(dict(values)))
    except Exception as error:  # the library wraps what the config raises
        raise ValueError(one_line(error)) from error


def plan_rows(
    operation: str,
    source: TensorSource,
    config: MoebaConfig,
    orders: Mapping[int, Sequence[int]],
    change: Change | None = None,
) -> Plan:
    """Every tensor of a model whose experts are picked from the source's; all others are copied as bytes.

    Args:
        config: the new model's.
        orders: for each sparse layer, which expert of the source each new one is.
        change: what is done to the picked rows.
    """
    recipes = []
    for name, shape in moeba_shapes(config).items():
        info = source.tensors[name]
        layer, part = place(name)
        if layer not in orders or not has_expert_rows(part):
            recipes.append(Recipe((info,), (name,), list, f"{name} kept"))
            continue
        alter = None if change is None else partial(change, part, layer)
        compute = partial(_pick, tuple(orders[layer]), alter)
        target = TensorInfo(name, shape, info.dtype)
        recipes.append(Recipe((target,), (name,), compute, f"{name}: {shape[0]} of {info.shape[0]} experts"))
    return Plan(operation, source, recipes, config_json(config))


def _pick(
    order: Sequence[int],
    alter: Callable[[int, torch.Tensor], torch.Tensor] | None,
    tensors: Sequence[torch.Tensor],
) -> list[Iterator[torch.Tensor]]:
    """The rows of one tensor, one at a time."""
    rows = ((new, tensors[0][old : old + 1]) for new, old in enumerate(order))
    return [(row if alter is None else alter(new, row) for new, row in rows)]

"""Which fields two Moeba configs disagree on, leaving out what has nothing to act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..configuration import MoebaConfig
from ..configuration.idle_fields import is_idle
from ..configuration.model_facts import layer_view, rope_of

# Fields of ours that change training or outputs, never the function that inference computes.
TRAINING_FIELDS = {
    "attention_dropout", "classifier_dropout", "embedding_dropout", "hidden_dropout", "initializer_range",
    "output_router_logits", "router_aux_loss_coef", "router_jitter_draws", "router_jitter_noise",
    "router_loss", "router_z_loss_coef", "train_padding_embedding", "use_cache",
}  # fmt: skip
METADATA_FIELDS = {
    "architectures", "auto_map", "chunk_size_feed_forward", "id2label", "label2id", "output_hidden_states",
    "native_fields", "problem_type", "return_dict", "transformers_version", "moeba_version", "_name_or_path",
}  # fmt: skip
# Fields that change nothing but the order of a sum.
_ROUNDING_FIELDS = {"topk_sorted"}


@dataclass(frozen=True)
class Difference:
    """One field that two configs disagree on."""

    name: str
    first: Any
    second: Any


def differences(first: MoebaConfig, second: MoebaConfig) -> list[Difference]:
    """Fields of the model, not metadata, that differ; values that mean the same compare equal."""
    a, b = _values(first), _values(second)
    names = sorted((set(a) | set(b)) - METADATA_FIELDS - _ROUNDING_FIELDS - {"model_type"})
    return [
        Difference(name, a.get(name), b.get(name))
        for name in names
        if a.get(name) != b.get(name) and not (is_idle(first, name) and is_idle(second, name))
    ]


def _values(config: MoebaConfig) -> dict[str, Any]:
    values = config.to_dict()
    values["rope_parameters"] = plain_rope(config)
    if config.is_heterogeneous:  # however the layers' sizes are spelled
        del values["per_layer_config"]
        for name in config.per_layer_attributes:
            sizes = [getattr(layer_view(config, i), name) for i in range(config.num_hidden_layers)]
            values[name] = sizes if len(set(map(str, sizes))) > 1 else sizes[0]
    return values


def plain_rope(config: MoebaConfig) -> dict[str, Any] | None:
    """Rope settings without what says nothing: kinds that no layer has, equal settings twice, a factor of 1."""
    rope = rope_of(config)
    if rope and config.rope_is_per_layer_type:
        kinds = [_without_full_factor(rope[kind]) for kind in sorted(set(config.layer_types))]
        same = all(settings == kinds[0] for settings in kinds)
        return kinds[0] if same and kinds else dict(zip(sorted(set(config.layer_types)), kinds, strict=True))
    return _without_full_factor(rope) or None


def _without_full_factor(rope: dict[str, Any] | None) -> dict[str, Any] | None:
    if not rope or rope.get("partial_rotary_factor") != 1.0:
        return rope
    return {key: value for key, value in rope.items() if key != "partial_rotary_factor"}

"""What a family of models is to the converter: a table for its config and a table for its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

from ..configuration import MoebaConfig
from .config_rows import ConfigRow, read_native_config, to_moeba, to_native, unknown_fields
from .rows import Dropped, Row


@dataclass(frozen=True)
class Family:
    """
    Attributes:
        model_type: transformers' name for it.
        architecture: the causal language model's class name.
        kind: `dense` or `moe`.
        config_rows: every field of the native config, once (the fields that all configs share are understood).
        rows: every tensor of the native checkpoint, once.
        dropped: source tensors that carry nothing.
        leftovers: keys of the family's old config.json files that no stock code reads.
        restated: keys of its config.json files, no stock code's either, that may say only what the family always does.
        base_prefix: what a checkpoint saved from the bare model leaves off its names.
        since: the release of transformers that brought it; empty for those of the oldest one that Moeba runs with.
        trains_otherwise: what the stock model drops out in training that ours does not, if its dropouts are above 0.
        reordered: why float32 sums run in another order than the stock model's; empty where logits are bit-identical.
        rounds_otherwise: what `reordered` says also moves roundings in half precision, beyond those of the sums.
    """

    model_type: str
    architecture: str
    kind: Literal["dense", "moe"]
    config_rows: tuple[ConfigRow, ...]
    rows: tuple[Row, ...]
    dropped: tuple[Dropped, ...] = ()
    leftovers: tuple[str, ...] = ()
    restated: tuple[tuple[str, Any], ...] = ()
    base_prefix: str = "model."
    since: str = ""
    reordered: str = ""
    rounds_otherwise: bool = False
    trains_otherwise: str = ""

    @property
    def layer_prefix(self) -> str:
        """What the names of a layer's tensors begin with, as in `model.layers.{layer}`."""
        pattern = next(row.theirs[0] for row in self.rows if row.per_layer)
        return pattern[: pattern.index("{layer}") + len("{layer}")]

    def read_config(self, raw: Mapping[str, Any]) -> PreTrainedConfig:
        """The stock config of a config.json.

        A key that nobody knows is refused, unless a later transformers than the installed one wrote it.
        """
        return read_native_config(raw, self.config_rows, self._unread(raw))

    def unknown_fields(self, raw: Mapping[str, Any]) -> list[str]:
        """`name=value` of each key that nobody knows, of a config.json that `read_config` takes."""
        return unknown_fields(raw, self.config_rows, self._unread(raw))

    def _unread(self, raw: Mapping[str, Any]) -> set[str]:
        """Keys that no stock code reads and that say nothing new."""
        return {*self.leftovers, *(name for name, value in self.restated if raw.get(name) == value)}

    def to_moeba(self, native: PreTrainedConfig) -> MoebaConfig:
        """The Moeba config with the same function."""
        return to_moeba(self.config_rows, native)

    def to_native(self, config: MoebaConfig) -> PreTrainedConfig:
        """The native config with the same function, or a ValueError that names what blocks it."""
        native = to_native(self.config_rows, self.model_type, config)
        native.architectures = [self.architecture]
        return native

    def drops(self, name: str, layers: int) -> Dropped | None:
        """The rule that drops a source tensor of a model of so many layers, if one does.

        Names without the base prefix count too.
        """
        names = (name, self.base_prefix + name)
        return next(
            (rule for rule in self.dropped if any(rule.matches(name, layers) for name in names)), None
        )

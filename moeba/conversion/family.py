"""What a family of models is to the converter: a table for its config and a table for its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

from ..configuration import MoebaConfig
from .config_rows import (
    CannotHold,
    ConfigRow,
    nearest_native,
    read_native_config,
    to_moeba,
    to_native,
    with_numbers_of,
)
from .rows import Dropped, PairsToHalves, Row
from .unread import check_unread, keep, reported, restore, unread_keys

# Buffers that some releases saved, of the whole model or of each layer; no stock model reads them.
_OF_ROPE = (Dropped("{rest}rotary_emb{rest}inv_freq", "rope frequencies, computed from the config"),)


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
        base_prefix: what a checkpoint saved from the bare model leaves off its names.
        aliases: other `model_type`s that transformers reads with the same classes.
        since: the release of transformers that brought it; empty for those of the oldest one that Moeba runs with.
        trains_otherwise: what the stock model drops out in training that ours does not, if its dropouts are above 0.
        reordered: why float32 sums run in another order than the stock model's; empty where logits are bit-identical.
        served_as: the class name by which engines and published checkpoints call it, where it is not transformers' own.
        rounds_otherwise: what `reordered` says also moves roundings in half precision, beyond those of the sums.
    """

    model_type: str
    architecture: str
    kind: Literal["dense", "moe"]
    config_rows: tuple[ConfigRow, ...]
    rows: tuple[Row, ...]
    dropped: tuple[Dropped, ...] = ()
    base_prefix: str = "model."
    aliases: tuple[str, ...] = ()
    since: str = ""
    reordered: str = ""
    rounds_otherwise: bool = False
    trains_otherwise: str = ""
    served_as: str = ""

    @property
    def exported_architecture(self) -> str:
        """The class name that exports give in config.json, by which engines find their code."""
        return self.served_as or self.architecture

    @property
    def layer_prefix(self) -> str:
        """What the names of a layer's tensors begin with, as in `model.layers.{layer}`."""
        pattern = next(row.theirs[0] for row in self.rows if row.per_layer)
        return pattern[: pattern.index("{layer}") + len("{layer}")]

    def read_config(self, raw: Mapping[str, Any]) -> PreTrainedConfig:
        """The stock config of a config.json."""
        return read_native_config(raw)

    def not_read(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Keys of a config.json, with their values, that no stock code of the family reads."""
        return reported(unread_keys(raw, self.config_rows), self.model_type)

    def take(self, raw: Mapping[str, Any], strict: bool = False) -> MoebaConfig:
        """The Moeba config of a config.json, with what an export says again in `native_fields`.

        Args:
            strict: refuse every key that the stock model does not read.

        Raises:
            ValueError: names each field that is not supported, or each key by which another function may be meant.
        """
        if raw.get("per_layer_config"):
            told = f"per_layer_config={raw['per_layer_config']!r} is not supported"
            raise ValueError(f"{told}: all layers of '{self.model_type}' have the same sizes")
        native, unread = self.read_config(raw), unread_keys(raw, self.config_rows)
        config = self.to_moeba(native)
        check_unread(unread, self.model_type, config, interleaved=self._interleaved, strict=strict)
        try:
            kept = keep(native, self._translated(config), self.config_rows, unread)
        except CannotHold:  # nor can an export, then
            kept = dict(unread)
        config.native_fields = {self.model_type: kept} if kept else None
        return config

    def to_moeba(self, native: PreTrainedConfig) -> MoebaConfig:
        """The Moeba config with the same function."""
        return to_moeba(self.config_rows, native)

    def to_native(self, config: MoebaConfig) -> PreTrainedConfig:
        """The native config with the same function, or a ValueError that names what blocks it."""
        native = self._translated(config)
        kept = (config.native_fields or {}).get(self.model_type, {})
        restore(native, kept, self.config_rows, self._interleaved)
        native.architectures = [self.exported_architecture]
        return native

    def rederived(self, config: MoebaConfig) -> MoebaConfig:
        """A config of other sizes, where numbers that follow from them (root of the width, …) do so again."""
        back = self.to_moeba(nearest_native(self.config_rows, self.model_type, config))
        return with_numbers_of(back, self.model_type, config)

    def _translated(self, config: MoebaConfig) -> PreTrainedConfig:
        return to_native(self.config_rows, self.model_type, config)

    @property
    def _interleaved(self) -> bool:
        """Whether the stock model rotates neighbouring entries together."""
        return any(isinstance(step, PairsToHalves) for row in self.rows for step in row.operations)

    def drops(self, name: str, config: MoebaConfig) -> Dropped | None:
        """The rule that drops a source tensor of a model of this config, if one does.

        Names without the base prefix count too.
        """
        names = (name, self.base_prefix + name)
        rules = (*self.dropped, *(_OF_ROPE if config.position_embedding_type == "rope" else ()))
        layers = config.num_hidden_layers
        return next((rule for rule in rules if any(rule.matches(name, layers) for name in names)), None)

"""The two folders that a certificate is about, and how they are related."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...configuration import MoebaConfig
from ...modeling import MoebaForCausalLM
from ..checkpoint import Checkpoint
from ..families import family_of
from ..families.shared.tensors import LAYER
from ..family import Family
from ..plan import PlannedTensors, moeba_shapes, plan_import
from .half_precision import HALVES, Order
from .twin import convert_twin, export_twin, load_exactly, load_model, plain

Models = tuple[PreTrainedModel, PreTrainedModel]
Twins = Callable[[Path], Models]


class Side:
    """One of the two folders: its files, its config in Moeba's terms, and its tensors as Moeba holds them."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = Checkpoint(folder)
        self.model_type: str = self.checkpoint.config.get("model_type", "")
        self.family: Family | None = None
        if self.model_type == MoebaConfig.model_type:
            self.config = MoebaConfig.from_dict(dict(self.checkpoint.config))
            self.tensors: Any = self.checkpoint
            self.dropped: dict[str, str] = {}
            self.filled: list[str] = []
        else:
            self.family = family_of(self.model_type)
            plan, self.config = plan_import(self.checkpoint)
            self.tensors = PlannedTensors(plan)
            self.dropped, self.filled = plan.dropped, plan.filled
            self.bare_names = plan.bare_names

    @property
    def parameters(self) -> int:
        return self.config.num_params()

    @property
    def dtype(self) -> torch.dtype:
        """What most of its values are stored in."""
        sizes: dict[torch.dtype, int] = {}
        for info in self.checkpoint.tensors.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + math.prod(info.shape)
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def half(self) -> torch.dtype:
        """The half precision that it is run in: its own, or else bfloat16."""
        return self.dtype if self.dtype in HALVES else torch.bfloat16

    def drops(self, name: str) -> bool:
        """Whether a tensor carries nothing, by its name on disk or by the one that transformers loads it under."""
        if name in self.dropped or self.family is None:
            return name in self.dropped
        return self.family.drops(name, self.config) is not None

    @cached_property
    def module_names(self) -> dict[str, str]:
        """Moeba's name of a module -> its own: those with one weight on both sides, and the feed-forwards."""
        layer = LAYER if self.family is None else self.family.layer_prefix
        patterns = {f"{LAYER}.{part}": f"{layer}.{part}" for part in ("mlp", "mlp.gate", "mlp.experts")}
        if self.family is None:
            weights = [name for name in moeba_shapes(self.config) if name.endswith(".weight")]
            patterns |= {name.removesuffix(".weight"): name.removesuffix(".weight") for name in weights}
        else:
            for row in self.family.rows:
                if len(row.ours) == len(row.theirs) == 1 and row.ours[0].endswith(".weight"):
                    patterns[row.ours[0].removesuffix(".weight")] = row.theirs[0].removesuffix(".weight")
        layers = range(self.config.num_hidden_layers)
        return {
            ours.replace("{layer}", str(i)): theirs.replace("{layer}", str(i))
            for ours, theirs in patterns.items()
            for i in (layers if "{layer}" in ours else (0,))
        }

    def identity(self) -> dict[str, Any]:
        folder = self.checkpoint.folder
        unread = self.family.not_read(self.checkpoint.config) if self.family is not None else {}
        return {
            "path": folder.resolve().name,
            "model_type": self.model_type,
            **({"not_read": unread} if unread else {}),
            "files": self.checkpoint.sha256(),
        }

    def as_moeba(self) -> MoebaForCausalLM:
        """The side as Moeba computes it: faults are planted in Moeba's parts."""
        model = MoebaForCausalLM(self.config)
        load_exactly(model, {name: self.tensors.read(name) for name in self.tensors.tensors})
        return plain(model)


@dataclass(frozen=True)
class Kind:
    """What is compared: copies of one model, or a model and what was made of its feed-forwards.

    Attributes:
        operation: what made the second of the first.
        rebuilt: the feed-forwards of the one were made of the other's, so their sizes and names rightly differ.
        equal_experts: the experts of a layer are copies of each other, so faults that mix them up change nothing.
        twins: builds a randomised small source and target by that operation, in a folder; None where the rows of the
            native side do.
    """

    operation: str
    rebuilt: bool = False
    equal_experts: bool = False
    twins: Twins | None = None

    @classmethod
    def of(cls, first: Side, second: Side) -> Kind:
        """What two configs show of it."""
        if bool(first.config.sparse_layers) != bool(second.config.sparse_layers):
            return cls("upcycle" if second.config.sparse_layers else "densify", True, True)
        if first.family is None and second.family is not None:
            return cls("export")
        return cls("convert" if first.family is not None and second.family is None else "compare")


@dataclass
class Comparison:
    """Two folders, and of what kind their comparison is."""

    first: Side
    second: Side
    kind: Kind

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.first, self.second

    @property
    def natives(self) -> list[tuple[Side, Family]]:
        """The sides in a native format, with their families."""
        return [(side, side.family) for side in self.sides if side.family is not None]

    @property
    def order(self) -> Order:
        """How the operations of the two sides differ."""
        families = {family.model_type: family for _, family in self.natives}
        if len(families) > 1:
            return Order("the models are of two families", rounds_otherwise=True)
        if len(self.natives) == 1:
            family = self.natives[0][1]
            return Order(family.reordered, family.rounds_otherwise)
        return Order()

    @property
    def trains_otherwise(self) -> str:
        """Why the two sides may draw other things in training."""
        if self.kind.rebuilt:
            return "the routers of rebuilt feed-forwards draw for themselves"
        return "; ".join(family.trains_otherwise for _, family in self.natives if family.trains_otherwise)

    @cached_property
    def modules(self) -> list[tuple[str, str]]:
        """Modules of the two models that should compute the same."""
        a, b = (side.module_names for side in self.sides)
        return [(a[name], b[name]) for name in a if name in b]

    def loaded(self, dtype: torch.dtype = torch.float32) -> Models:
        """Both, as transformers loads their folders."""
        first, second = (load_model(side.checkpoint.folder, side.drops, dtype) for side in self.sides)
        return first, second

    def config_of(self, one: PreTrainedModel, other: PreTrainedModel) -> MoebaConfig:
        """The config of two models in Moeba's terms: that of a model of ours, or else of a folder."""
        models = (model for model in (other, one) if isinstance(model, MoebaForCausalLM))
        return next((model.config for model in models), self.second.config)

    @property
    def twins(self) -> Twins | None:
        """How a small source and target are built: as the operation says, or by the rows of the only native side."""
        first, second = self.sides
        if self.kind.twins is not None or self.kind.rebuilt or len(self.natives) != 1:
            return self.kind.twins
        family = self.natives[0][1]
        if first.family is not None:
            return lambda folder: convert_twin(second.config, family, folder)
        return lambda folder: export_twin(first.config, family, folder)

"""What a merge makes: experts out of several models' feed-forwards, and one model's tensors, or a mean, around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch

from ...conversion.checkpoint import TensorSource
from ...conversion.plan import Plan
from ...conversion.shards import Output, Recipe
from ...conversion.weight_files import TensorInfo
from ..experts.expert_rows import FEED_FORWARD
from ..experts.experts_from_dense import DOWN, GATE, UP, random_stream
from ..experts.upcycling import Upcycling
from .merge_recipe import BASE, ExpertRecipe
from .vocabulary import Vocabulary
from .vocabulary_rows import TABLES, table_recipe

Edit = Callable[[str, torch.Tensor], torch.Tensor]


class Branches:
    """Several models of the same tensors as one source, in which they are called `branch/name`."""

    def __init__(self, models: Mapping[str, TensorSource]) -> None:
        self._models = models
        self.tensors = {
            f"{branch}/{name}": TensorInfo(f"{branch}/{name}", info.shape, info.dtype)
            for branch, model in models.items()
            for name, info in model.tensors.items()
        }

    def read(self, name: str) -> torch.Tensor:
        branch, _, tensor = name.partition("/")
        return self._models[branch].read(tensor)


@dataclass
class Merging(Upcycling):
    """One merge: its config and its tensors, of the models themselves or of small twins that are all the same.

    Attributes:
        experts: in their order; shared: the one that every token visits.
        branches: of each expert, by its name, the model that it is from.
        donors: the models whose tensors outside of the experts are kept; the mean of several.
        dtype: of every tensor written; None: as they are stored.
        vocabulary: whose each row of embedding and head is, where the models differ in their tokens.
        shared_gates: by layer the row that opens the shared expert, `[1, hidden]`; without it stands half open.
    """

    operation: ClassVar[str] = "merge"
    experts: tuple[ExpertRecipe, ...] = ()
    shared: ExpertRecipe | None = None
    branches: Mapping[str, str] = field(default_factory=dict)
    donors: tuple[str, ...] = (BASE,)
    dtype: torch.dtype | None = None
    vocabulary: Vocabulary | None = None
    shared_gates: dict[int, torch.Tensor] = field(default_factory=dict)

    def values(self, stored: set[torch.dtype]) -> dict[str, Any]:
        values = super().values(stored)
        if self.shared is not None:
            values["shared_expert_combination"] = "sum"
        if self.dtype is not None:
            values["dtype"] = str(self.dtype).removeprefix("torch.")
        return values

    def plan(self, source: TensorSource) -> Plan:
        """Of `Branches`; a single source stands for every branch."""
        if not isinstance(source, Branches):
            source = Branches(dict.fromkeys({BASE, *self.branches.values()}, source))
        return super().plan(source)

    def _stored_name(self, name: str) -> str:
        return f"{BASE}/{name}"

    def _dtype(self, source: TensorSource, name: str) -> torch.dtype:
        return self.dtype or source.tensors[self._stored_name(name)].dtype

    def _shared(self, info: TensorInfo, part: str, layer: int) -> Recipe:
        assert self.shared is not None
        edit = partial(_edited, self.shared, self.seed, layer, len(self.experts), self._shared_factor)
        compute = partial(_fuse, (part.split(".")[0],), edit, info.dtype)
        source = f"{self.branches[self.shared.name]}/{FEED_FORWARD.format(layer=layer)}{part}"
        return Recipe((info,), (source,), compute, info.name)

    @property
    def _shared_factor(self) -> float:
        """A gate that stands half open is made up for; one that the prompts open has its own say."""
        assert self.shared is not None
        return 2.0 if self.config.shared_expert_gate and not self.shared.positive_prompts else 1.0

    def _kept(self, source: TensorSource, name: str, dense: str, shape: tuple[int, ...]) -> Recipe:
        """A tensor outside of the experts: a donor's, or the donors' mean."""
        names = tuple(f"{donor}/{dense}" for donor in self.donors)
        dtype = source.tensors[names[0]].dtype
        if dtype.is_floating_point:
            dtype = self.dtype or dtype
        if self.vocabulary is not None and dense in TABLES:
            return table_recipe(TensorInfo(name, shape, dtype), self.vocabulary, self.donors)
        return Recipe((TensorInfo(name, shape, dtype),), names, partial(_mean, dtype), name, streams=True)

    def _experts(
        self, name: str, shape: tuple[int, ...], part: str, layer: int, dtype: torch.dtype
    ) -> Recipe:
        kind = "bias" if part.endswith("_bias") else "weight"
        fused = part.removesuffix("_bias")
        names = (GATE, UP) if fused == "gate_up_proj" else (fused,)
        experts = self.experts[: self.maker.experts]
        sources = tuple(
            f"{self.branches[expert.name]}/{FEED_FORWARD.format(layer=layer)}{projection}.{kind}"
            for expert in experts
            for projection in names
        )
        edits = [
            partial(_edited, expert, self.seed, layer, place, 1.0) for place, expert in enumerate(experts)
        ]
        compute = partial(_stacked, names, edits, dtype)
        return Recipe((TensorInfo(name, shape, dtype),), sources, compute, name, streams=True)

    def _new(self, name: str, shape: tuple[int, ...], part: str, layer: int, stored: torch.dtype) -> Recipe:
        """As upcycling has it, but for rows that are found while the merged model runs: they are asked for late."""
        found = {"gate.weight": self.rows, "shared_expert_gate.weight": self.shared_gates}.get(part)
        fresh = super()._new(name, shape, part, layer, stored)
        if found is None:
            return fresh
        dtype = fresh.targets[0].dtype

        def compute(_: Sequence[torch.Tensor]) -> Sequence[Output]:
            return [found[layer].to(dtype)] if layer in found else fresh.compute(())

        return Recipe(fresh.targets, (), compute, fresh.description)


def _edited(
    expert: ExpertRecipe, seed: int, layer: int, place: int, factor: float, part: str, tensor: torch.Tensor
) -> torch.Tensor:
    """A projection of an expert with its noise, and with the factor on its answers; else the very tensor."""
    scale = expert.residual_scale * factor if part == DOWN else 1.0
    noise = expert.noise_scale if tensor.dim() > 1 else 0.0
    if scale == 1.0 and noise == 0.0:
        return tensor
    wide = tensor.float()
    if noise:
        generator = random_stream(seed, layer, place, (GATE, UP, DOWN).index(part))
        wide = wide + noise * torch.randn(wide.shape, generator=generator)
    return (wide * scale).to(tensor.dtype)


def _fuse(
    names: Sequence[str], edit: Edit, dtype: torch.dtype, tensors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Projections one below the other."""
    parts = [edit(name, tensors[place]).to(dtype) for place, name in enumerate(names)]
    return [parts[0] if len(parts) == 1 else torch.cat(parts)]


def _stacked(
    names: Sequence[str], edits: Sequence[Edit], dtype: torch.dtype, tensors: Sequence[torch.Tensor]
) -> list[Iterator[torch.Tensor]]:
    """One expert after the other, `[1, ...]` each, of which one is in memory."""
    count = len(names)

    def experts() -> Iterator[torch.Tensor]:
        for place, edit in enumerate(edits):
            own = tensors[place * count : (place + 1) * count]
            yield _fuse(names, edit, dtype, own)[0].unsqueeze(0)

    return [experts()]


def _mean(dtype: torch.dtype, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """In float32 at least. Of equal tensors it is that tensor, bit for bit."""
    first = tensors[0]
    if len(tensors) == 1 or not first.is_floating_point():
        return [first.to(dtype)]
    wide = first.to(torch.promote_types(first.dtype, torch.float32))
    shift = torch.zeros_like(wide)
    for place in range(1, len(tensors)):
        shift += tensors[place].to(wide.dtype) - wide
    return [(wide + shift / len(tensors)).to(dtype)]

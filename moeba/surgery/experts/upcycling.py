"""The config and the tensors of a model whose dense feed-forwards become experts, full-size or of a small twin."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from ...configuration import MoebaConfig
from ...configuration.ranges import MOST_EXPERTS
from ...conversion.certificate.twin import shrink
from ...conversion.checkpoint import TensorSource
from ...conversion.plan import EMBEDDING, Plan, config_json, moeba_shapes
from ...conversion.shards import Recipe
from ...conversion.weight_files import TensorInfo
from ..layers import parse_layers
from ..routers.router_init import calibrated_rows, random_rows
from ..routers.shaping import ROUTER_FIELDS, shape
from ..running.operation import moeba_twin
from ..running.sources import Source
from ..running.texts import Texts
from .expert_rows import FEED_FORWARD, place
from .experts_from_dense import DOWN, GATE, UP, Copies

FIRST_STAYS_DENSE = (
    "layer 0 stays dense: the first block gains least from experts and is the hardest to route (Sparse Upcycling, "
    "appendix B); layers='all' includes it"
)


def dtypes(tensors: TensorSource) -> set[torch.dtype]:
    """Of the feed-forwards' weights."""
    return {info.dtype for name, info in tensors.tensors.items() if ".mlp." in name}


@dataclass
class Upcycling:
    """One upcycle: its config and its tensors, of the model itself or of a small twin."""

    operation: ClassVar[str] = "upcycle"
    dense: MoebaConfig
    maker: Copies
    top_k: int
    shared_expert: bool
    seed: int
    config: MoebaConfig = field(init=False)
    router_init: str = "normal"
    rows: dict[int, torch.Tensor] = field(default_factory=dict)
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)

    def settle(self, layers: str | None, to: str, stored: set[torch.dtype]) -> tuple[str | None, list[str]]:
        """Find the config, and the family that can hold it."""
        dense = self.dense
        if dense.sparse_layers:
            raise ValueError(
                f"the source already has experts in layers {dense.sparse_layers}: {self.operation} starts from a dense "
                "model."
            )
        if dense.is_heterogeneous:
            raise ValueError(
                "the source's layers differ in their sizes (per_layer_config): not supported yet."
            )
        if self.maker.experts > MOST_EXPERTS:
            raise ValueError(
                f"experts={self.maker.experts} in a layer: at most {MOST_EXPERTS} are supported."
            )
        count = dense.num_hidden_layers
        choices = [parse_layers(layers, count)] if layers is not None else _usual_layers(count, to)
        if not choices[0]:
            raise ValueError(f"layers={layers!r}: no layer is chosen, the model would stay dense.")
        if dense.intermediate_size % self.maker.granularity:
            raise ValueError(
                f"granularity={self.maker.granularity} does not divide intermediate_size={dense.intermediate_size}."
            )
        mixtures = [["sparse" if i in chosen else "dense" for i in range(count)] for chosen in choices]
        self.config, family, reason = shape(self.values(stored), to, mixtures)
        notes = [reason] if reason else []
        if self.config.shared_expert_intermediate_size and not self.shared_expert:
            notes.append(
                f"'{family}' has a shared expert in every sparse layer: here one whose weights are zero"
            )
        if layers is None and count > 1:
            first = self.config.mlp_layer_types[0] == "sparse"
            notes.append(
                f"'{family}' has experts in every layer, so layer 0 has them too"
                if first
                else FIRST_STAYS_DENSE
            )
        return family, notes

    def values(self, stored: set[torch.dtype]) -> dict[str, Any]:
        """The fields of the sparse config that are not the router's to choose."""
        dense = self.dense
        scale = self.maker.scale
        # A factor that is no power of two would round stored half-precision weights: the router then applies it.
        by_router = scale != 1.0 and math.frexp(scale)[0] != 0.5 and stored != {torch.float32}
        if by_router and dense.mlp_bias:
            raise ValueError(
                f"granularity={self.maker.granularity} cannot keep the function of biased {stored} weights: choose a "
                "power of two."
            )
        values = copy.deepcopy(dense.to_dict())
        values.update(
            num_experts=self.maker.experts,
            num_experts_per_tok=self.top_k,
            moe_intermediate_size=self.maker.width(dense.intermediate_size),
            expert_bias=dense.mlp_bias,
            shared_expert_intermediate_size=dense.intermediate_size if self.shared_expert else 0,
            shared_expert_gate=False,
            routed_scaling_factor=scale if by_router else 1.0,
            router_loss="training",
        )
        for name in ROUTER_FIELDS:
            values.pop(name, None)
        return values

    def calibrate(self, source: Source, texts: Texts) -> None:
        """Router rows from what the dense model's feed-forwards receive. The experts of one whole share a row."""
        ids, labels = texts.windows(source.tokenizer, source.config.max_position_embeddings)
        group = self.maker.granularity
        layers = self.config.sparse_layers
        self.rows, self.reports = calibrated_rows(
            source.model(),
            ids,
            labels,
            layers,
            self.maker.experts // group,
            max(self.top_k // group, 1),
            self.seed,
        )

    def plan(self, source: TensorSource) -> Plan:
        """Every tensor of the sparse model: copied as bytes, made of dense projections, or a new router's."""
        recipes = [self._recipe(source, name, shape) for name, shape in moeba_shapes(self.config).items()]
        notes = [
            f"layer {layer}: router rows {', '.join(f'{key} {value}' for key, value in report.items())}"
            for layer, report in self.reports.items()
        ]
        return Plan(self.operation, source, recipes, config_json(self.config), notes=notes)

    def _recipe(self, source: TensorSource, name: str, shape: tuple[int, ...]) -> Recipe:
        if self._stored_name(name) in source.tensors:
            return self._kept(source, name, name, shape)
        layer, part = place(name)
        prefix = FEED_FORWARD.format(layer=layer)
        stored = self._dtype(source, f"{prefix}{DOWN}.weight")
        if part.startswith(("gate.", "shared_expert_gate.")):
            # A router is never stored in less than what the model around it is.
            narrow = not stored.is_floating_point or stored.itemsize < 2
            own = self._dtype(source, EMBEDDING) if narrow else stored
            own = own if own.is_floating_point and own.itemsize > 1 else torch.float32
            return self._new(name, shape, part, layer, own)
        shared = part.startswith("shared_expert.")
        part = part.removeprefix("shared_expert.").removeprefix("experts.")
        if part.startswith("act_fn."):
            # What an activation learns is there once: all experts of a layer share it.
            return self._kept(source, name, prefix + part, shape)
        if shared and not self.shared_expert:
            return _constant(name, torch.zeros(shape, dtype=stored), "zeros")
        if shared:
            return self._shared(TensorInfo(name, shape, stored), part, layer)
        return self._experts(name, shape, part, layer, stored)

    def _stored_name(self, name: str) -> str:
        """What the source calls a tensor of the dense model."""
        return name

    def _dtype(self, source: TensorSource, name: str) -> torch.dtype:
        """In which a tensor of the dense model, or what is made of it, is written."""
        return source.tensors[name].dtype

    def _kept(self, source: TensorSource, name: str, dense: str, shape: tuple[int, ...]) -> Recipe:
        """A tensor as the dense model has it, there perhaps under another name."""
        info = TensorInfo(name, shape, source.tensors[dense].dtype)
        return Recipe((info,), (dense,), list, f"{name} kept" if dense == name else name)

    def _shared(self, info: TensorInfo, part: str, layer: int) -> Recipe:
        """A tensor of the shared expert, `part` such as `up_proj.weight`."""
        factor = self._shared_side if part.startswith(DOWN) else 1.0
        compute = list if factor == 1.0 else partial(_times, factor)
        words = f"{info.name}: kept, times {factor}"
        return Recipe((info,), (FEED_FORWARD.format(layer=layer) + part,), compute, words)

    @property
    def _side(self) -> float:
        """What the routed and the shared side each count, where both compute the whole and are added."""
        return 0.5 if self.shared_expert and self.config.shared_expert_combination == "sum" else 1.0

    @property
    def _shared_side(self) -> float:
        """That of the shared expert before its gate, which starts half open."""
        return self._side * (2.0 if self.config.shared_expert_gate else 1.0)

    def _experts(
        self, name: str, shape: tuple[int, ...], part: str, layer: int, dtype: torch.dtype
    ) -> Recipe:
        kind = "bias" if part.endswith("_bias") else "weight"
        fused = part.removesuffix("_bias")
        names = (GATE, UP) if fused == "gate_up_proj" else (fused,)
        sources = tuple(f"{FEED_FORWARD.format(layer=layer)}{projection}.{kind}" for projection in names)
        scale = self._side
        if kind == "weight":
            scale *= self.maker.scale / self.config.routed_scaling_factor
        factor = scale if fused == DOWN else 1.0
        compute = partial(_build, self.maker, kind, layer, names, factor)
        words = f"{name}: {self.maker.experts} experts of {' + '.join(sources)}"
        return Recipe((TensorInfo(name, shape, dtype),), sources, compute, words)

    def _new(self, name: str, shape: tuple[int, ...], part: str, layer: int, stored: torch.dtype) -> Recipe:
        """A tensor of the router, or of the gate before an empty shared expert."""
        if part != "gate.weight":
            dtype = torch.float32 if part.endswith("e_score_correction_bias") else self._router_dtype(stored)
            return _constant(name, torch.zeros(shape, dtype=dtype), "zeros")
        group = self.maker.granularity
        rows = self.rows.get(layer)
        if rows is None:
            std = self.config.initializer_range
            rows = random_rows(self.router_init, (shape[0] // group, shape[1]), std, self.seed, layer)
        rows = rows.repeat_interleave(group, dim=0)
        return _constant(name, rows.to(self._router_dtype(stored)), "new")

    def _router_dtype(self, stored: torch.dtype) -> torch.dtype:
        return torch.float32 if self.config.router_param_dtype == "float32" else stored

    def twins(self, folder: Path, family: str | None) -> tuple[Any, Any]:
        """A random small dense model, and what this very operation makes of it."""
        group = self.maker.granularity
        small = shrink(self.dense)
        if small.intermediate_size % group:
            small.intermediate_size += -small.intermediate_size % group
            small.moe_intermediate_size = small.intermediate_size
        wholes = min(self.maker.experts // group, max(12 // group, 2))
        visited = min(self.top_k // group, wholes)
        twin = replace(
            self, dense=small, maker=replace(self.maker, experts=wholes * group), top_k=visited * group,
            router_init="normal", rows={}, reports={},
        )  # fmt: skip
        twin.config = self._config_like_own(twin)
        twin.rows = {
            i: random_rows("normal", (wholes, small.hidden_size), 1.0, 1, i)
            for i in twin.config.sparse_layers
        }
        return moeba_twin(small, twin.config, twin.plan, folder, family)

    def _config_like_own(self, twin: Upcycling) -> MoebaConfig:
        """The config of a twin: its own sizes, this one's router and kinds of layers."""
        own = self.config
        values = twin.values({torch.float32})
        values |= {name: getattr(own, name) for name in ROUTER_FIELDS}
        values |= {name: getattr(own, name) for name in ("shared_expert_gate", "routed_scaling_factor")}
        if own.shared_expert_intermediate_size and not self.shared_expert:
            values["shared_expert_intermediate_size"] = (
                4 if own.shared_expert_gate else values["moe_intermediate_size"]
            )
        layers = twin.dense.num_hidden_layers
        mixed = "dense" in own.mlp_layer_types and layers > 1
        values["mlp_layer_types"] = ["dense" if mixed and i < layers - 1 else "sparse" for i in range(layers)]
        return MoebaConfig.from_dict(values)


def _usual_layers(count: int, to: str) -> list[list[int]]:
    """All but the first; all, where there is no other or where the family that is asked for wants it."""
    every = list(range(count))
    if count == 1:
        return [every]
    return [every[1:]] if to == "auto" else [every[1:], every]


def _build(
    maker: Copies, kind: str, layer: int, names: Sequence[str], factor: float, tensors: Sequence[torch.Tensor]
) -> list[Iterator[torch.Tensor]]:
    return [maker.build(kind, layer, tensors, names, factor)]


def _times(factor: float, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor * factor for tensor in tensors]


def _constant(name: str, value: torch.Tensor, words: str) -> Recipe:
    return Recipe(
        (TensorInfo(name, tuple(value.shape), value.dtype),), (), lambda _: [value], f"{name} {words}"
    )

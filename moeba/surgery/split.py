"""Splitting: each feed-forward of a dense model is divided into smaller experts, of which a token visits a few.

Nothing is added, and a token computes less: the function is not kept unless all parts are visited. What is lost before
any training is measured. After LLaMA-MoE (Zhu et al. 2024: random parts, a factor on the chosen ones), MoEfication
(Zhang et al. 2021: clusters that fire together) and ExpertWeaver (2026: the most active neurons are shared).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from typing_extensions import Unpack

from ..conversion.certificate.twin import shrink
from ..conversion.job import Result, Run, RunOptions
from ..conversion.shards import Recipe
from ..conversion.threads import one_thread
from ..conversion.weight_files import TensorInfo
from ..modeling.feed_forward import MoebaGatedMLP, MoebaMLP
from .experts.activity import Activity
from .experts.expert_rows import FEED_FORWARD
from .experts.experts_from_dense import Parts
from .experts.partitions import Division, at_random, by_likeness
from .experts.upcycling import Upcycling, dtypes
from .experts.whole_numbers import refuse_whole_numbers
from .routers.router_init import TOKENS_PER_EXPERT, random_rows
from .routers.shaping import require_home
from .running.operation import Measure, Surgery, arguments, before_reading, moeba_twin
from .running.sources import Source
from .running.streaming import load_feed_forward
from .running.texts import Texts, observe_feed_forwards

METHODS = ("random", "coactivation", "clusters")
ROUTERS = ("calibration", "normal", "zeros")
LOSSY = (
    "LOSSY until it is trained: a token computes with a part of each split feed-forward only. What that costs on text "
    "is measured; expect it to be much"
)
WHOLE = (
    "every token visits all parts and they weigh the same: the function is kept, and no computation is saved"
)


def split(
    source: str | Path,
    destination: str | Path,
    *,
    experts: int,
    top_k: int,
    method: str = "random",
    shared: int = 0,
    layers: str | None = None,
    router_init: str | None = None,
    calibration: Sequence[str | Path] = (),
    seed: int = 0,
    to: str = "auto",
    export: bool = False,
    revision: str | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Divide the feed-forwards of a dense checkpoint (native or Moeba) into experts of equal size.

    This is lossy until the result is trained.

    The chosen experts' weights sum to 1. Their answers are multiplied so that they stand for all routed experts: by
    their number, or with calibration text by the factor, found for each layer, that comes closest to the whole.

    Args:
        experts: equal parts of each feed-forward, shared ones included.
        top_k: how many of the other parts a token visits. All of them with equal weights keep the function, proven.
        method: `random`; `coactivation` (neurons that fire together on the calibration text); `clusters` (neurons with
            similar input weights: the gate's where there is one).
        shared: how many of the parts are always on, as one shared expert: the most active neurons on the calibration
            text, or random ones without any.
        layers: as for `upcycle`.
        router_init: `calibration` (rows fitted to find the experts with the largest answers), `normal` (small noise) or
            `zeros`. Default: `zeros` where all parts are visited, else `calibration` if there is text, else `normal`.
        calibration: text files that the dense model reads; the gap is measured on them too.
        seed: of all that is random.
        to: the native family that must be able to hold the result, or `auto`; see `shaping`.
        export: write the native checkpoint itself, in place of a Moeba one.
        run: see `Run`.

    Raises:
        ValueError: the source has experts already, or an argument does not fit it.
        CertificateError: the function should have been kept and was not; nothing is published.
    """
    asked = arguments(locals())
    _check(experts, top_k, method, shared, calibration)
    routed = experts - shared
    router_init = _router_init(router_init, top_k == routed, bool(calibration))
    options = Run(**run)
    opened = Source(source, revision)
    texts = Texts.read(calibration) if calibration else None
    refuse_whole_numbers(opened.tensors, "split")
    splitting = Splitting(
        opened.config, Parts(routed, seed, experts), top_k, bool(shared), seed, method=method
    )
    splitting.router_init = router_init
    family, notes = splitting.settle(layers, to, dtypes(opened.tensors))
    require_home(family, export)
    divided = None
    if not options.dry_run:
        before_reading([opened], destination, options)
        divided = splitting.divide(opened, texts)
    keeps = splitting.keeps_function(dtypes(opened.tensors))
    plan = splitting.plan(opened.tensors)
    plan.notes += [WHOLE if keeps else LOSSY, *notes]
    return Surgery(
        sources=[opened],
        plan=plan,
        config=splitting.config,
        recipe={
            **asked,
            "router_init": router_init,
            "texts": texts.digests() if texts else {},
            "sparse_layers": splitting.config.sparse_layers,
            "division": divided,
        },
        family=family,
        twins=splitting.twins if keeps else None,
        equal_experts=False,
        measure=Measure(opened, texts),
        reports={"layers": splitting.reports},
    ).run(destination, export, options)


def _check(experts: int, top_k: int, method: str, shared: int, calibration: Sequence[str | Path]) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}.")
    if experts < 1:
        raise ValueError(f"experts={experts} must be at least 1.")
    if not 0 <= shared < experts:
        raise ValueError(
            f"shared={shared} must be at least 0 and below experts={experts}, which counts shared ones."
        )
    if not 1 <= top_k <= experts - shared:
        raise ValueError(
            f"top_k={top_k} must be between 1 and {experts - shared}, the experts that are not shared."
        )
    if method == "coactivation" and not calibration:
        raise ValueError("method='coactivation' needs calibration text files (--calibration FILE).")


def _router_init(asked: str | None, visits_all: bool, has_text: bool) -> str:
    if asked is None:
        return "zeros" if visits_all else "calibration" if has_text else "normal"
    if asked not in ROUTERS:
        raise ValueError(f"router_init={asked!r}: choose one of {', '.join(ROUTERS)}.")
    if asked == "calibration" and not has_text:
        raise ValueError("router_init='calibration' needs calibration text files (--calibration FILE).")
    if asked == "zeros" and not visits_all:
        raise ValueError(
            "router_init='zeros' would send every token to the same experts, and they differ: choose normal or "
            "calibration, or visit all of them."
        )
    return asked


@dataclass
class Splitting(Upcycling):
    """One split: its config and its tensors, of the model itself or of a small twin."""

    operation: ClassVar[str] = "split"
    maker: Parts
    method: str = "random"

    def settle(self, layers: str | None, to: str, stored: set[torch.dtype]) -> tuple[str | None, list[str]]:
        size = self.dense.intermediate_size
        if size % self.maker.parts:
            raise ValueError(
                f"experts={self.maker.parts} does not divide intermediate_size={size}: choose a divisor of it."
            )
        return super().settle(layers, to, stored)

    def values(self, stored: set[torch.dtype]) -> dict[str, Any]:
        width = self.maker.shared_width(self.dense.intermediate_size)
        return super().values(stored) | {"shared_expert_intermediate_size": width}

    def keeps_function(self, stored: set[torch.dtype]) -> bool:
        """Whether all parts are visited with equal weights, and the factor on them rounds no stored weight."""
        count = self.maker.experts
        unrounded = count & (count - 1) == 0 or stored == {torch.float32}
        return self.top_k == count and self.router_init == "zeros" and unrounded

    def divide(self, source: Source, texts: Texts | None) -> str:
        """Decide where each neuron goes, and the routers' rows. Returns the SHA-256 of all that was decided."""
        layers = self.config.sparse_layers
        if texts is None:
            with one_thread():  # as with texts: see `observe_feed_forwards`
                for layer in layers:
                    block = _dense_block(source, layer) if self.method == "clusters" else None
                    self._divide(layer, block, None)
        else:
            ids, _ = texts.windows(source.tokenizer, source.config.max_position_embeddings)
            needed = TOKENS_PER_EXPERT * self.maker.parts
            if ids.numel() < needed:
                raise ValueError(
                    f"calibration gave {ids.numel()} tokens for {self.maker.parts} experts: give at least {needed} "
                    "tokens of text."
                )

            def observe(layer: int, inputs: torch.Tensor) -> None:
                block = _dense_block(source, layer)
                self._divide(layer, block, Activity(block, inputs))

            observe_feed_forwards(source.model(), ids, layers, observe)
        digest = hashlib.sha256()
        for layer in layers:
            division = self.maker.divisions[layer]
            rows = self.rows.get(layer, torch.empty(0))
            for decided in (division.experts, division.shared, rows, torch.tensor(division.factor)):
                digest.update(decided.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _divide(self, layer: int, block: MoebaMLP | None, activity: Activity | None) -> None:
        """Decide for one layer.

        Args:
            block: its feed-forward in float32; needed for `clusters`.
            activity: what its neurons do on text, if there is any; needed for `coactivation`.
        """
        maker, size = self.maker, self.dense.intermediate_size
        generator = torch.Generator().manual_seed(self.seed * 100_003 + layer)
        count = maker.shared_width(size)
        if activity is None:
            shared = torch.randperm(size, generator=generator)[:count].sort().values
        else:
            shared = activity.most_active(count)
        others = torch.ones(size, dtype=torch.bool)
        others[shared] = False
        neurons = others.nonzero().flatten()
        if self.method == "random":
            experts = at_random(neurons, maker.experts, generator)
        elif self.method == "coactivation":
            assert activity is not None
            experts = by_likeness(neurons, activity.firing(neurons), maker.experts, generator)
        else:
            experts = by_likeness(neurons, _input_weights(block)[neurons], maker.experts, generator)
        factor = float(maker.experts)
        if activity is not None and self.router_init != "zeros":
            rows = self._rows(layer, activity, experts)
            factor, report = activity.fit(Division(experts, shared, factor), rows, self.top_k)
            self.rows[layer], self.reports[layer] = rows, report
        maker.divisions[layer] = Division(experts, shared, factor)

    def _rows(self, layer: int, activity: Activity, experts: torch.Tensor) -> torch.Tensor:
        if self.router_init == "calibration":
            return activity.router(experts, self.top_k)
        shape = (len(experts), activity.inputs.shape[1])
        return random_rows(self.router_init, shape, self.config.initializer_range, self.seed, layer)

    @property
    def _side(self) -> float:
        """What the routed and the shared side each count: half of it is lost where they are averaged."""
        averaged = self.shared_expert and self.config.shared_expert_combination == "average"
        return 2.0 if averaged else 1.0

    def _shared(self, info: TensorInfo, part: str, layer: int) -> Recipe:
        name, kind = part.split(".")
        compute = partial(_shared_piece, self.maker, name, kind, layer, self._shared_side)
        words = f"{info.name}: the neurons that are always on"
        return Recipe((info,), (FEED_FORWARD.format(layer=layer) + part,), compute, words)

    def twins(self, folder: Path, family: str | None) -> tuple[Any, Any]:
        """A random small dense model, and what this very operation makes of it; all of its four parts are visited."""
        small = shrink(self.dense)
        assert small.intermediate_size % 4 == 0, small.intermediate_size
        routed = 3 if self.shared_expert else 4
        twin = replace(
            self,
            dense=small,
            maker=Parts(routed, self.seed, 4),
            top_k=routed,
            method="random",
            rows={},
            reports={},
        )
        twin.config = self._config_like_own(twin)
        for layer in twin.config.sparse_layers:
            twin._divide(layer, None, None)
        return moeba_twin(small, twin.config, twin.plan, folder, family)


def _dense_block(source: Source, layer: int) -> MoebaMLP:
    block = load_feed_forward(source.config, source.tensors, layer)
    assert isinstance(block, MoebaMLP)
    return block


def _input_weights(block: MoebaMLP | None) -> torch.Tensor:
    """What decides when a neuron fires: its row of the gate projection, or of the only one, `[neurons, hidden]`."""
    assert block is not None
    return (block.gate_proj if isinstance(block, MoebaGatedMLP) else block.up_proj).weight.detach()


def _shared_piece(
    maker: Parts, name: str, kind: str, layer: int, factor: float, tensors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    piece = maker.shared_piece(name, kind, layer, tensors[0])
    return [piece * factor if name == "down_proj" and factor != 1.0 else piece]

"""Growing: every expert becomes several, which are copies of it until training tells them apart.

The copies of an expert score alike, so when a token visits as many times more experts, it visits all copies of those
it visited before, and their weights add up to what the one had. Where the weights do not come out by themselves, a
factor on them, or on the experts' answers, puts them right.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Unpack

from ..configuration import MoebaConfig
from ..configuration.model_facts import layer_view
from ..conversion.certificate.twin import shrink
from ..conversion.checkpoint import TensorSource
from ..conversion.job import Result, Run, RunOptions
from ..conversion.plan import Plan
from .experts.expert_rows import build_config, plan_rows, require_experts, set_sizes, sizes, stored_dtypes
from .experts.whole_numbers import refuse_whole_numbers
from .routers.routing_integrity import copies_stay_together
from .routers.shaping import home
from .running.operation import Measure, Surgery, arguments, moeba_twin
from .running.sources import Source
from .running.texts import Texts

NEGLIGIBLE = 1e-18  # beside a sum of scores, whatever its multiple
BIAS_OF_CHOICE = "gate.e_score_correction_bias"


def grow(
    source: str | Path,
    destination: str | Path,
    *,
    times: int | None = None,
    experts: int | None = None,
    top_k: int | None = None,
    noise: float = 0.0,
    calibration: Sequence[str | Path] = (),
    seed: int = 0,
    to: str = "auto",
    export: bool = False,
    revision: str | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Give a mixture of experts (native or Moeba) `times` as many experts, by copying each with its router row.

    Args:
        times, experts: how many times as many, or how many a layer there are then; give one of the two.
        top_k: experts a token visits then. By default it grows as the experts do, and the function is kept; any other
            number changes it (Expert Upcycling, 2026, leaves it as it is).
        noise: normal noise on all copies but the first, router rows included, so many times as large as a row of the
            tensor varies. Any changes the function.
        calibration: text files on which the gap is measured where the function is not kept.
        to: the native family that must be able to hold the result, or `auto`.
        export: write the native checkpoint itself, in place of a Moeba one.
        run: see `Run`.

    Raises:
        ValueError: the source is dense, an argument does not fit it, or its router cannot keep the function.
        CertificateError: the proof failed; nothing is published.
    """
    asked = arguments(locals())
    if (times is None) == (experts is None):
        raise ValueError("say either times (2: twice as many experts) or experts (how many there are then).")
    if times is not None and times < 2:
        raise ValueError(f"times={times} must be at least 2.")
    if not (noise >= 0 and math.isfinite(noise)):
        raise ValueError(f"noise={noise} must be a number that is not negative.")
    options = Run(**run)
    opened = Source(source, revision)
    require_experts(opened.config, "grow")
    growth = Growth(opened.config, times or _times(opened.config, experts or 0), top_k, noise, seed)
    if calibration and growth.keeps_function:
        raise ValueError("calibration files are given, but growing keeps the function here and reads none.")
    texts = Texts.read(calibration) if calibration else None
    family, notes = growth.settle(to, export, stored_dtypes(opened.tensors))
    if noise or growth.in_weights:
        refuse_whole_numbers(
            opened.tensors, f"noise={noise}" if noise else "growing experts that each count less"
        )
    plan = growth.plan(opened.tensors)
    plan.notes += notes
    return Surgery(
        sources=[opened],
        plan=plan,
        config=growth.config,
        recipe={**asked, "times": growth.times, "texts": texts.digests() if texts else {}},
        family=family,
        twins=growth.twins if growth.keeps_function else None,
        equal_experts=False,
        examine=partial(copies_stay_together, growth.orders) if growth.keeps_function else None,
        measure=Measure(opened, texts),
    ).run(destination, export, options)


def _times(config: MoebaConfig, experts: int) -> int:
    found = sizes(config, "num_experts")
    times = {experts / count for count in found.values()}
    if len(times) > 1:
        raise ValueError(
            f"experts={experts}: the layers have different numbers of experts ({sorted(set(found.values()))}); say "
            "times."
        )
    (factor,) = times
    if factor < 2 or factor != int(factor):
        raise ValueError(
            f"experts={experts} must be 2 or more times the {next(iter(found.values()))} there are."
        )
    return int(factor)


@dataclass
class Growth:
    """One growth: its config and its tensors, of the model itself or of a small twin."""

    before: MoebaConfig
    times: int
    top_k: int | None
    noise: float
    seed: int
    config: MoebaConfig = field(init=False)
    in_weights: bool = False  # the factor is on the down projections, not on the router's weights

    @property
    def keeps_function(self) -> bool:
        return self.noise == 0 and all(ratio == self.times for ratio in self.visits().values())

    def visits(self) -> dict[int, float]:
        """How many times as many experts a token of each layer visits."""
        before = sizes(self.before, "num_experts_per_tok")
        return {
            layer: self.times if self.top_k is None else self.top_k / count for layer, count in before.items()
        }

    def factors(self) -> dict[int, float]:
        """On each layer's routed answers: r times as many of m copies weigh r, or in a softmax over all r / m."""
        before = self.before
        if before.router_type == "topk_softmax" or before.router_type == "sparsemixer":
            return dict.fromkeys(before.sparse_layers, 1.0)
        if before.norm_topk_prob:
            return dict.fromkeys(before.sparse_layers, 1.0)
        shares = before.router_type == "topk" and before.scoring_func == "softmax"  # copies share one score
        return {layer: (self.times if shares else 1.0) / ratio for layer, ratio in self.visits().items()}

    @property
    def copies_groups(self) -> bool:
        """Whether whole groups are copied: one that is judged by its two best would else count its best twice."""
        closed = 1 <= self.before.topk_group < self.before.n_group
        return closed and self.before.group_scoring == "top2_sum"

    @property
    def orders(self) -> dict[int, list[int]]:
        """Which expert of the source each new one of a layer is."""
        groups = self.before.n_group if self.copies_groups else 0
        found = {}
        for layer, count in sizes(self.before, "num_experts").items():
            step = count // groups if groups else 1
            starts = range(0, count, step)
            found[layer] = [
                old for start in starts for _ in range(self.times) for old in range(start, start + step)
            ]
        return found

    def settle(self, to: str, export: bool, stored: set[torch.dtype]) -> tuple[str | None, list[str]]:
        """Find the config, and the family that can hold it.

        Raises:
            ValueError: the router cannot keep the function, or no such family can hold the result.
        """
        self._refuse()
        forms = self._forms(stored)
        found: list[tuple[bool, MoebaConfig, str | None, list[str]]] = []
        refusal = None
        for self.in_weights in forms:
            config = build_config(self.values())
            try:
                found.append((self.in_weights, config, *home(config, to, export)))
            except ValueError as error:
                refusal = refusal or error
        if not found:
            assert refusal is not None
            raise refusal
        self.in_weights, self.config, family, notes = next((one for one in found if one[2]), found[0])
        return family, [*notes, *self._notes()]

    def _refuse(self) -> None:
        before = self.before
        if before.router_type == "sparsemixer" and self.top_k != 2:
            raise ValueError(
                "router_type='sparsemixer' always picks 2 experts, so a token cannot visit all copies: growing cannot "
                "keep the function. top_k=2 grows it all the same, and measures the gap."
            )
        blind = (
            before.group_mask == "zero"
            and before.router_selection_bias
            and before.topk_group < before.n_group
        )
        if blind and self.keeps_function:
            raise ValueError(
                "group_mask='zero' with a selection bias (router_selection_bias=True): experts of closed groups tie at "
                "0 and may win, and copies would tie otherwise. Growing cannot keep the function."
            )

    def _forms(self, stored: set[torch.dtype]) -> list[bool]:
        """Where the factor may stand: in the router's weights (False), in the down projections (True)."""
        factors = set(self.factors().values())
        if factors == {1.0}:
            return [False]
        exact = all(math.frexp(factor)[0] == 0.5 for factor in factors) or stored == {torch.float32}
        forms = [False] if self.before.router_type == "topk" else []
        forms += [True] if exact else []
        if not forms:
            names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in stored))
            raise ValueError(
                f"router_type='{self.before.router_type}' with norm_topk_prob=False counts each copy in full, and "
                f"experts stored in {names} cannot be scaled by {sorted(factors)} without rounding: choose times (or "
                "top_k) so that it is a power of two."
            )
        return forms

    def values(self) -> dict[str, Any]:
        """The fields of the new config."""
        before, times = self.before, self.times
        values = copy.deepcopy(before.to_dict())
        values["router_loss"] = "training"  # whatever the source trained with: copies have to be told apart
        visits = self.visits()
        counts = {layer: count * times for layer, count in sizes(before, "num_experts").items()}
        chosen = {
            layer: round(count * visits[layer])
            for layer, count in sizes(before, "num_experts_per_tok").items()
        }
        set_sizes(values, "num_experts", counts)
        set_sizes(values, "num_experts_per_tok", chosen)
        if not self.in_weights:
            factors = self.factors()
            scale = {layer: float(layer_view(before, layer).routed_scaling_factor) for layer in factors}
            set_sizes(
                values, "routed_scaling_factor", {layer: scale[layer] * factors[layer] for layer in factors}
            )
        if self.copies_groups:
            values.update(n_group=before.n_group * times, topk_group=before.topk_group * times)
        if before.router_type == "topk" and before.scoring_func == "sigmoid":
            # The sum of the chosen scores grows, and what is added to it, or its floor, has to grow along.
            if before.norm_topk_eps > NEGLIGIBLE:
                set_sizes(values, "norm_topk_eps", {i: before.norm_topk_eps * visits[i] for i in visits})
            if before.norm_topk_min:
                set_sizes(values, "norm_topk_min", {i: before.norm_topk_min * visits[i] for i in visits})
        return values

    def _notes(self) -> list[str]:
        notes = []
        if self.before.router_loss != "training":
            notes.append(
                "trains with the router losses of a model made here: router_loss='training' (the source: "
                f"'{self.before.router_loss}'), router_aux_loss_coef={self.before.router_aux_loss_coef}"
            )
        if self.copies_groups:
            notes.append(
                f"groups of experts are judged by their two best (group_scoring='top2_sum'): whole groups are copied, "
                f"n_group={self.config.n_group}"
            )
        factors = sorted(set(self.factors().values()))
        if factors != [1.0]:
            where = "down projections" if self.in_weights else "routed_scaling_factor"
            words = ", ".join(f"{factor:g}" for factor in factors)
            notes.append(f"copies of an expert count {words} each, by the {where}")
        return notes

    def plan(self, source: TensorSource) -> Plan:
        """Every tensor of the larger model: copied as bytes, or each expert's row several times."""
        return plan_rows("grow", source, self.config, self.orders, self._change())

    def _change(self) -> Callable[[str, int, int, torch.Tensor], torch.Tensor]:
        factors = self.factors() if self.in_weights else {}
        divides_bias = self.before.router_type == "topk" and self.before.scoring_func == "softmax"
        firsts = {layer: {order.index(old) for old in set(order)} for layer, order in self.orders.items()}

        def change(part: str, layer: int, new: int, row: torch.Tensor) -> torch.Tensor:
            if part == BIAS_OF_CHOICE:
                # Copies share one score: what is added to it shrinks as the score does.
                return row / self.times if divides_bias else row
            if self.noise and not part.endswith("bias") and new not in firsts[layer]:
                row = self._noisy(part, layer, new, row)
            factor = factors.get(layer, 1.0) if part.startswith("experts.down_proj") else 1.0
            return row if factor == 1.0 else row * factor

        return change

    def _noisy(self, part: str, layer: int, new: int, row: torch.Tensor) -> torch.Tensor:
        """A row with noise of its own, drawn anew for each layer, expert and tensor."""
        which = ("gate.weight", "experts.gate_up_proj", "experts.up_proj", "experts.down_proj").index(part)
        generator = torch.Generator().manual_seed(((self.seed * 1009 + layer) * 100_003 + new) * 4 + which)
        wide = row.float()
        spread = wide.std() if wide.numel() > 1 else wide.abs().sum()
        return (wide + self.noise * spread * torch.randn(wide.shape, generator=generator)).to(row.dtype)

    def twins(self, folder: Path, family: str | None) -> tuple[Any, Any]:
        """A random small mixture of experts, and what this very operation makes of it."""
        small = shrink(self.before)
        twin = replace(self, before=small, top_k=None)
        twin.config = build_config(twin.values())
        return moeba_twin(small, twin.config, twin.plan, folder, family)

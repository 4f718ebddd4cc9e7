"""How the experts of a layer become one dense feed-forward.

The dense answer is that of a weighted average of the experts. Experts that are parts of a whole are averaged part by
part and put together. What the router's weights sum to goes into the down projection, and the neurons of a shared
expert stand beside the others.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...configuration import MoebaConfig
from ...configuration.model_facts import LEARNED_ACTIVATIONS, layer_view
from ...conversion.certificate.twin import shrink
from ...conversion.checkpoint import TensorSource
from ...conversion.plan import Plan, config_json, moeba_shapes
from ...conversion.shards import Recipe
from ...conversion.weight_files import TensorInfo
from ...modeling import MoebaForCausalLM
from ..running.operation import moeba_twin
from .averaging import LayerAverage, Shared
from .expert_rows import FEED_FORWARD, build_config, place, set_sizes, sizes
from .likeness import Likeness

METHODS = ("average", "load", "expert")
NEGLIGIBLE = 1e-9  # beside a sum of scores
# Fields that a dense model has no use for.
EXPERT_FIELDS = (
    "num_experts", "num_experts_per_tok", "moe_intermediate_size", "mlp_layer_types", "expert_bias",
    "shared_expert_intermediate_size", "shared_expert_gate", "shared_expert_combination", "moe_output_norm",
    "router_type", "scoring_func", "norm_topk_prob", "norm_topk_eps", "norm_topk_min", "topk_sorted", "n_group",
    "topk_group", "group_mask", "group_scoring", "router_selection_bias", "routed_scaling_factor", "router_bias",
    "router_logit_softcapping", "router_param_dtype", "router_matmul_dtype", "router_score_dtype",
    "router_weight_dtype", "sparsemixer_eps", "router_jitter_noise", "router_jitter_draws", "router_loss",
    "router_aux_loss_coef", "router_z_loss_coef", "output_router_logits",
)  # fmt: skip


@dataclass
class Densifying:
    """One densifying: its config and its tensors, of the model itself or of a small twin.

    Attributes:
        granularity: experts that make up a whole; expert `e` is part `e % granularity`.
        loads: for `load`, each layer's, `[experts]`.
        gate_is_half: the shared expert's gate has weights of zero, so it lets half through.
        totals: what a token's weights sum to in each layer, where the config does not say.
    """

    before: MoebaConfig
    method: str
    expert: int | None
    granularity: int
    config: MoebaConfig = field(init=False)
    shared: Shared = Shared.DROPPED
    gate_is_half: bool = False
    loads: dict[int, torch.Tensor] = field(default_factory=dict)
    totals: dict[int, float] = field(default_factory=dict)

    def check(self) -> None:
        """
        Raises:
            ValueError: the model has a part that no dense one has, or an argument does not fit it.
        """
        if self.before.moe_output_norm:
            raise ValueError("moe_output_norm=True: a dense feed-forward has no norm behind it.")
        for layer, count in sizes(self.before, "num_experts").items():
            if self.granularity < 1 or count % self.granularity:
                raise ValueError(
                    f"granularity={self.granularity} does not divide the {count} experts of layer {layer}."
                )
            wholes = count // self.granularity
            if self.expert is not None and not 0 <= self.expert < wholes:
                raise ValueError(f"expert={self.expert} must be between 0 and {wholes - 1}.")

    @property
    def weights_sum_to_one(self) -> bool:
        """Whether the weights of a token's experts do, but for routed_scaling_factor."""
        before = self.before
        if before.router_type == "topk_softmax":
            return True
        if before.router_type == "sparsemixer":
            return False
        if before.norm_topk_prob:
            return max(before.norm_topk_eps, before.norm_topk_min) <= NEGLIGIBLE
        every = sizes(before, "num_experts") == sizes(before, "num_experts_per_tok")
        return every and before.router_type == "topk" and before.scoring_func == "softmax"

    def settle_shared(self, likeness: Likeness) -> None:
        """
        Raises:
            ValueError: the shared expert cannot be part of a dense feed-forward.
        """
        if likeness.shared_is_zero:
            return
        self.gate_is_half = self.before.shared_expert_gate and likeness.gate_is_zero
        if self.before.shared_expert_gate and not self.gate_is_half:
            raise ValueError(
                "shared_expert_gate=True: the shared expert counts more for some tokens than for others, which no "
                "dense feed-forward does, and neither its weights nor its gate's are zero."
            )
        if self.before.hidden_act in LEARNED_ACTIVATIONS:
            raise ValueError(
                f"hidden_act='{self.before.hidden_act}' learns, in the shared expert otherwise than in the routed "
                "ones: one feed-forward has one activation."
            )
        same = likeness.shared_is_same and not likeness.unequal
        self.shared = Shared.ADDED if same else Shared.KEPT

    def keeps_function(self, likeness: Likeness, stored: set[torch.dtype]) -> bool:
        """Whether the experts are copies, in wholes that the router keeps together, and no factor rounds."""
        if likeness.unequal or not self.weights_sum_to_one:
            return False
        if self.granularity > 1:
            visited = sizes(self.before, "num_experts_per_tok").values()
            if self.before.n_group > 1 or any(count % self.granularity for count in visited):
                return False
        factors = {self._factor(layer) / self.granularity for layer in self.before.sparse_layers}
        return stored == {torch.float32} or all(math.frexp(factor)[0] == 0.5 for factor in factors)

    def settle(self) -> None:
        """Find the dense config."""
        before = self.before
        values = copy.deepcopy(before.to_dict())
        for name in EXPERT_FIELDS:
            values.pop(name, None)
            for own in (values.get("per_layer_config") or {}).values():
                own.pop(name, None)
        other = "dense" in before.mlp_layer_types or self.shared is Shared.KEPT
        values["mlp_bias"] = before.expert_bias or (before.mlp_bias and other)
        set_sizes(
            values,
            "intermediate_size",
            {layer: self._width(layer) for layer in range(before.num_hidden_layers)},
        )
        self.config = build_config(values)

    def _width(self, layer: int) -> int:
        view = layer_view(self.before, layer)
        if layer not in self.before.sparse_layers:
            return int(view.intermediate_size)
        beside = view.shared_expert_intermediate_size if self.shared is Shared.KEPT else 0
        return int(self.granularity * view.moe_intermediate_size + beside)

    def _factor(self, layer: int) -> float:
        """What a token's weights sum to, times the share of the routed side."""
        scale = float(layer_view(self.before, layer).routed_scaling_factor)
        return self.totals.get(layer, scale) * self._half(layer)

    def _half(self, layer: int) -> float:
        view = layer_view(self.before, layer)
        averages = view.shared_expert_intermediate_size and self.before.shared_expert_combination == "average"
        return 0.5 if averages else 1.0

    def plan(self, source: TensorSource) -> Plan:
        """Every tensor of the dense model."""
        recipes: list[Recipe] = []
        done: set[str] = set()
        for name, shape in moeba_shapes(self.config).items():
            if name in done:
                continue
            layer, part = place(name)
            if name in source.tensors:
                recipes.append(Recipe((source.tensors[name],), (name,), list, f"{name} kept"))
            elif layer in self.before.sparse_layers:
                recipes.append(self._recipe(source, layer, part))
            else:  # a bias that only the experts had
                stored = source.tensors[name.replace(".bias", ".weight")].dtype
                recipes.append(_zeros(name, shape, stored))
            done.update(info.name for info in recipes[-1].targets)
        return Plan("densify", source, recipes, config_json(self.config))

    def _recipe(self, source: TensorSource, layer: int, part: str) -> Recipe:
        """Of one projection's weight or bias; gate and up projection together."""
        prefix = FEED_FORWARD.format(layer=layer)
        if part.startswith("act_fn."):
            info = source.tensors[f"{prefix}experts.{part}"]
            return Recipe(
                (TensorInfo(prefix + part, info.shape, info.dtype),), (info.name,), list, prefix + part
            )
        projection, kind = part.split(".")
        inner = projection != "down_proj"
        gated = self.before.feed_forward_type != "mlp"
        names = (("gate_proj", "up_proj") if gated else ("up_proj",)) if inner else ("down_proj",)
        stack = ("gate_up_proj" if gated else "up_proj") if inner else "down_proj"
        routed = f"{prefix}experts.{stack}{'_bias' if kind == 'bias' else ''}"
        beside = tuple(f"{prefix}shared_expert.{name}.{kind}" for name in names)
        beside = beside if self.shared is not Shared.DROPPED and beside[0] in source.tensors else ()
        sources = ((routed,) if routed in source.tensors else ()) + beside
        view = layer_view(self.before, layer)
        hidden, width = self.before.hidden_size, self._width(layer)
        shape = {
            (True, "weight"): (width, hidden), (True, "bias"): (width,),
            (False, "weight"): (hidden, width), (False, "bias"): (hidden,),
        }[inner, kind]  # fmt: skip
        stored = source.tensors[f"{prefix}experts.down_proj"].dtype
        targets = tuple(TensorInfo(f"{prefix}{name}.{kind}", shape, stored) for name in names)
        build = LayerAverage(
            shares=self._shares(layer, view.num_experts),
            parts=self.granularity,
            shared=self.shared,
            factor=self._factor(layer),
            half=self._half(layer) * (0.5 if self.gate_is_half else 1.0),
            sizes=(self.granularity * view.moe_intermediate_size, hidden, width),
            routed=routed in source.tensors,
            dtype=stored,
        )
        compute = partial(build.inner if inner else build.down, kind, len(names))
        return Recipe(
            targets, sources, compute, f"{prefix}{'+'.join(names)}.{kind}: of {view.num_experts} experts"
        )

    def _shares(self, layer: int, experts: int) -> list[float]:
        """How much of each part of the whole each expert makes up; the shares of a part sum to 1."""
        parts = self.granularity
        if self.method == "expert":
            assert self.expert is not None
            return [float(expert // parts == self.expert) for expert in range(experts)]
        loads = self.loads.get(layer, torch.ones(experts)).double().reshape(-1, parts)
        loads = torch.where(loads.sum(dim=0) > 0, loads, 1.0)
        return (loads / loads.sum(dim=0)).flatten().tolist()

    def twins(self, folder: Path, family: str | None) -> tuple[Any, Any]:
        """A random small mixture whose experts are copies, and what this very operation makes of it."""
        small = self._small()
        twin = replace(self, before=small, expert=self.expert and 0, loads={}, totals={})
        twin.settle()
        return moeba_twin(small, twin.config, twin.plan, folder, family, twin.make_copies)

    def _small(self) -> MoebaConfig:
        """A small config whose experts make up wholes as the model's do, as wide as its dense layers if they are."""
        parts, before = self.granularity, self.before
        small = shrink(before)
        values = copy.deepcopy(small.to_dict())
        for own in (values.get("per_layer_config") or {}).values():
            for name in EXPERT_FIELDS:
                own.pop(name, None)
        beside = values["shared_expert_intermediate_size"]
        width = values["moe_intermediate_size"]
        wide = not self.config.is_heterogeneous and self.config.intermediate_size == 4 * before.hidden_size
        if wide and not 4 * small.hidden_size % parts:
            beside, width = 0 if self.shared is not Shared.KEPT else beside, 4 * small.hidden_size // parts
        if beside and self.shared is Shared.ADDED:
            beside = parts * width
        values.update(moe_intermediate_size=width, shared_expert_intermediate_size=beside)
        values["intermediate_size"] = parts * width + (beside if self.shared is Shared.KEPT else 0)
        values["shared_expert_gate"] = before.shared_expert_gate and beside > 0
        if parts > 1:
            view = layer_view(before, before.sparse_layers[0])
            wholes = max(12 // parts, 2)
            chosen = wholes if view.num_experts_per_tok == view.num_experts else 1
            values.update(num_experts=wholes * parts, num_experts_per_tok=chosen * parts)
        return build_config(values)

    def make_copies(self, model: MoebaForCausalLM) -> None:
        """Make a random model an untrained upcycle: its experts copies, its shared expert as it was found."""
        for layer in self.before.sparse_layers:
            block: Any = model.model.layers[layer].mlp
            experts = torch.arange(block.gate.num_experts)
            part, first = experts % self.granularity, experts - experts % self.granularity
            for tensor in block.experts.parameters(recurse=False):
                tensor.copy_(tensor[part])
            for tensor in block.gate.state_dict().values():
                tensor.copy_(tensor[first] if self.granularity > 1 else tensor)
            if block.gate.bias is not None:
                block.gate.bias.zero_()  # it changes nothing among equals: a fault that drops it could not show
            if self.gate_is_half:
                block.shared_expert_gate.weight.zero_()
            shared = block.shared_expert
            if shared is None or self.shared is Shared.KEPT:
                continue
            if self.shared is Shared.DROPPED:
                for tensor in shared.down_proj.parameters():
                    tensor.zero_()
                continue
            names = ("up_proj",) if self.before.feed_forward_type == "mlp" else ("gate_proj", "up_proj")
            for kind, suffix in (("weight", ""), ("bias", "_bias")):
                stack = getattr(block.experts, block.experts.inner_name + suffix, None)
                if stack is None:
                    continue
                for index, name in enumerate(names):
                    pieces = [row.chunk(len(names))[index] for row in stack[: self.granularity]]
                    getattr(getattr(shared, name), kind).copy_(torch.cat(pieces))


def _zeros(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Recipe:
    return Recipe(
        (TensorInfo(name, shape, dtype),), (), lambda _: [torch.zeros(shape, dtype=dtype)], f"{name} zeros"
    )

"""How the routers of a model spread tokens over experts, seen through forward hooks.

- Counts stay on the device of each router; nothing waits for it until the figures are asked for.
- Padding is left out wherever the model was given an attention mask.
- Activation checkpointing runs a layer twice; the second run, inside the backward pass, is not counted.
- With several processes, `gather` and the callback add up what every process saw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..library.torch_internals import is_in_backward
from ..modeling.balancing import token_mask_from
from ..modeling.modeling_moeba import MoebaModel
from ..modeling.router import MoebaRouter
from .files import STATISTICS_FILE


@dataclass(frozen=True)
class LayerStatistics:
    """What one sparse layer's router did.

    Attributes:
        layer: index of the layer in the model.
        tokens: how many tokens were routed; each was sent to `top_k` experts.
        counts: how many tokens each expert got; they sum to `tokens * top_k`.
        entropy: of the router's scores, averaged over tokens and divided by its maximum: 0 when one expert
            takes the whole score of each token, 1 when all experts score alike.
    """

    layer: int
    tokens: int
    counts: tuple[int, ...]
    entropy: float

    @property
    def shares(self) -> tuple[float, ...]:
        """Each expert's part of all assignments; they sum to 1 unless nothing was routed."""
        total = sum(self.counts)
        return tuple(count / total if total else 0.0 for count in self.counts)

    @property
    def max_load(self) -> float:
        """The busiest expert's share over the ideal one: 1 is balance, `experts / top_k` a collapse."""
        return max(self.shares) * len(self.counts)

    @property
    def dead_fraction(self) -> float:
        """The part of the experts that got no token at all."""
        return self.counts.count(0) / len(self.counts) if self.tokens else 0.0


class RouterStatistics:
    """Collects what every router of `model` chooses, from entering the context until leaving it.

    ```python
    with RouterStatistics(model) as statistics:
        model(**batch)
    for layer in statistics.layers():
        print(layer.layer, layer.counts, layer.max_load)
    ```

    Args:
        model: any Moeba model, bare or with a head. A dense one has no routers and gives no layers.
        training_only: leave out forward passes in evaluation mode.
    """

    def __init__(self, model: nn.Module, training_only: bool = False) -> None:
        self._backbones = [module for module in model.modules() if isinstance(module, MoebaModel)]
        self._tallies = [_Tally(layer, router) for layer, router in _routers(self._backbones)]
        self._training_only = training_only
        self._token_mask: torch.Tensor | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> RouterStatistics:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def attach(self) -> None:
        """Start to collect; what was collected before is kept."""
        if self._handles:
            return
        for backbone in self._backbones:
            hook = backbone.register_forward_pre_hook(self._remember_mask, with_kwargs=True)
            self._handles.append(hook)
        for tally in self._tallies:
            self._handles.append(tally.router.register_forward_hook(self._hook_of(tally)))

    def detach(self) -> None:
        """Stop collecting; what was collected stays readable."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._token_mask = None

    def reset(self) -> None:
        """Forget what was collected."""
        for tally in self._tallies:
            tally.reset()

    def layers(self) -> list[LayerStatistics]:
        """One entry a sparse layer, of what this process saw."""
        return [tally.read(tally.counts, tally.sums) for tally in self._tallies]

    def gather(self) -> list[LayerStatistics]:
        """As `layers`, added up over all processes; each of them must call it. Alone, it is `layers`."""
        if not (dist.is_available() and dist.is_initialized()) or not self._tallies:
            return self.layers()
        device = self._tallies[0].router.weight.device
        counts = torch.cat([tally.counts.to(device) for tally in self._tallies])
        sums = torch.stack([tally.sums.to(device) for tally in self._tallies])
        dist.all_reduce(counts)
        dist.all_reduce(sums)
        parts = counts.split([len(tally.counts) for tally in self._tallies])
        return [tally.read(*figures) for tally, *figures in zip(self._tallies, parts, sums, strict=True)]

    def _remember_mask(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        tokens = arguments.get("input_ids")
        if tokens is None:
            tokens = arguments["inputs_embeds"]
        self._token_mask = token_mask_from(arguments.get("attention_mask"), tuple(tokens.shape[:2]))

    def _hook_of(self, tally: _Tally) -> Any:
        def hook(router: MoebaRouter, args: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
            if is_in_backward() or (self._training_only and not router.training):
                return
            logits, _, indices = output
            tally.add(logits, indices, self._token_mask)

        return hook


class RouterStatisticsCallback(TrainerCallback):
    """Adds the balance of the routers to what the stock `Trainer` logs during training.

    Each training log gets, over the steps since the last one, `router/max_load` (the worst layer's),
    `router/entropy` (the mean) and `router/dead_fraction` (the mean), and the same three for each sparse
    layer as `router/layer_3/max_load`. How many they are does not depend on the number of experts.

    ```python
    trainer = Trainer(model=model, args=args, train_dataset=data)
    RouterStatisticsCallback().add_to(trainer)
    ```

    `callbacks=[RouterStatisticsCallback()]` works as well, but Trainer calls reporters such as TensorBoard
    before it, so the figures then reach only the log history, the console and `trainer_state.json`.

    At the end of training, what each expert got in the latest log goes to `router_statistics.json` in the output
    folder, where the model card finds it.

    Args:
        per_layer: also log each layer's figures.

    Attributes:
        last: the statistics behind the latest log, one entry a sparse layer; `last_step` is its step.
    """

    def __init__(self, per_layer: bool = True) -> None:
        self.per_layer = per_layer
        self.last: list[LayerStatistics] = []
        self.last_step = 0
        self._statistics: RouterStatistics | None = None

    def add_to(self, trainer: Trainer) -> RouterStatisticsCallback:
        """Put this callback before all others of `trainer`, so that its reporters see the figures."""
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None, "Trainer always hands its model to its callbacks"
        self._statistics = RouterStatistics(model, training_only=True)
        self._statistics.attach()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._statistics is not None:
            self._statistics.detach()
            self._statistics = None
        if self.last and args.should_save and args.output_dir is not None:
            self._save(Path(args.output_dir))

    def _save(self, folder: Path) -> None:
        layers = [
            {"layer": one.layer, "tokens": one.tokens, "counts": list(one.counts), "entropy": one.entropy}
            for one in self.last
        ]
        record = {"format_version": 1, "step": self.last_step, "layers": layers}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STATISTICS_FILE).write_text(json.dumps(record) + "\n", encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # "loss" tells a training log from those of an evaluation and of the end.
        if self._statistics is None or logs is None or "loss" not in logs:
            return
        layers = self._statistics.gather()
        self._statistics.reset()
        if not layers:
            return
        self.last, self.last_step = layers, state.global_step
        metrics = router_metrics(layers, self.per_layer)
        logs.update(metrics)
        # Trainer copied `logs` into its history before it called its callbacks.
        state.log_history[-1].update(metrics)


def router_metrics(layers: list[LayerStatistics], per_layer: bool = True) -> dict[str, float]:
    """Figures for a log: three over all layers and, with `per_layer`, the same three for each."""
    metrics = {
        "router/max_load": max(layer.max_load for layer in layers),
        "router/entropy": sum(layer.entropy for layer in layers) / len(layers),
        "router/dead_fraction": sum(layer.dead_fraction for layer in layers) / len(layers),
    }
    for layer in layers if per_layer else ():
        metrics[f"router/layer_{layer.layer}/max_load"] = layer.max_load
        metrics[f"router/layer_{layer.layer}/entropy"] = layer.entropy
        metrics[f"router/layer_{layer.layer}/dead_fraction"] = layer.dead_fraction
    return metrics


class _Tally:
    """Running figures of one router, on its device: tokens by expert, and `sums` of tokens and entropy."""

    def __init__(self, layer: int, router: MoebaRouter) -> None:
        self.layer = layer
        self.router = router
        self.reset()

    def reset(self) -> None:
        device = self.router.weight.device
        self.counts = torch.zeros(self.router.num_experts, dtype=torch.int64, device=device)
        self.sums = torch.zeros(2, dtype=torch.float32, device=device)

    @torch.no_grad()
    def add(self, logits: torch.Tensor, indices: torch.Tensor, token_mask: torch.Tensor | None) -> None:
        """Count `indices` `[tokens, top_k]` of the tokens that `token_mask` keeps."""
        valid = torch.ones(len(indices), dtype=torch.bool, device=indices.device)
        if token_mask is not None:
            valid = token_mask.reshape(-1).to(indices.device)
        chosen = valid[:, None].expand_as(indices).reshape(-1).long()
        counts = torch.zeros(self.router.num_experts, dtype=torch.int64, device=indices.device)
        counts.scatter_add_(0, indices.reshape(-1), chosen)
        entropy = (self._entropy(logits) * valid).sum()
        self.counts += counts.to(self.counts.device)
        self.sums += torch.stack((valid.sum().float(), entropy)).to(self.sums.device)

    def _entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """Each token's, between 0 and 1, `[tokens]`."""
        scores = self.router.scores(logits)
        probabilities = scores / scores.sum(dim=-1, keepdim=True)
        return torch.special.entr(probabilities).sum(dim=-1) / math.log(max(self.router.num_experts, 2))

    def read(self, counts: torch.Tensor, sums: torch.Tensor) -> LayerStatistics:
        # Tokens follow from the exact counts; the float sum only weighs the entropy.
        tokens = int(counts.sum()) // self.router.top_k
        entropy = float(sums[1] / sums[0].clamp(min=1.0))
        return LayerStatistics(self.layer, tokens, tuple(counts.tolist()), entropy)


def _routers(backbones: list[MoebaModel]) -> Iterator[tuple[int, MoebaRouter]]:
    for backbone in backbones:
        for index, layer in enumerate(backbone.layers):
            for module in layer.modules():
                if isinstance(module, MoebaRouter):
                    yield index, module

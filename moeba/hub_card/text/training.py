"""What a Trainer left in a model folder: its state, its arguments, its evaluation, and the balance of the routers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...training.files import STATISTICS_FILE
from ..reading.records import as_dicts, as_float, as_int, read_record
from ..reading.training_arguments import read_training_arguments

STATE_FILE = "trainer_state.json"
_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "seed",
)
# Values at which these say nothing: not set, or set by another argument.
_SILENT = {"max_steps": -1, "warmup_ratio": 0, "label_smoothing_factor": 0, "num_train_epochs": 0,
           "bf16": False, "fp16": False, "gradient_checkpointing": False}  # fmt: skip
_SPEEDS = ("_runtime", "_per_second", "_time")  # of an evaluation: facts of a machine, not of the model
_ROUTER = "router/"

Points = tuple[tuple[float, float], ...]  # step, value


@dataclass(frozen=True)
class ExpertLoad:
    """What one layer's router did over the last logged steps."""

    layer: int
    counts: tuple[int, ...]  # tokens by expert
    entropy: float  # 0: one expert takes all; 1: all score alike

    @property
    def shares(self) -> tuple[float, ...]:
        """Each expert's tokens over an even share: 1 is balance."""
        return tuple(count * len(self.counts) / sum(self.counts) for count in self.counts)


@dataclass(frozen=True)
class TrainingFacts:
    """Empty and None mean that no file says it."""

    has_state: bool
    steps: int | None = None
    epochs: float | None = None
    tokens: int | None = None
    losses: Points = ()
    evaluation_losses: Points = ()
    evaluation: Mapping[str, float] | None = None
    arguments: Mapping[str, Any] | None = None
    max_load: Mapping[int, Points] | None = None  # layer -> busiest expert's share over an even one
    entropy: Mapping[int, Points] | None = None  # layer -> mean entropy of the router, from 0 to 1
    experts: tuple[ExpertLoad, ...] = ()
    is_of_source: bool = False  # the weights are still those that the last operation wrote

    @property
    def train_loss(self) -> float | None:
        return self.losses[-1][1] if self.losses else None


def training_facts(folder: Path) -> TrainingFacts | None:
    state = read_record(folder, STATE_FILE)
    arguments = read_training_arguments(folder)
    evaluation = read_record(folder, "eval_results.json")
    if not (state or arguments or evaluation or (folder / "training_args.bin").is_file()):
        return None
    log = as_dicts(state.get("log_history"))
    measured = evaluation or next(
        (entry for entry in reversed(log) if any(key.startswith("eval_") for key in entry)), {}
    )
    metrics = {key: value for key in sorted(measured) if (value := as_float(measured[key])) is not None}
    return TrainingFacts(
        has_state=bool(state),
        steps=as_int(state.get("global_step")),
        epochs=as_float(state.get("epoch")),
        tokens=as_int(state.get("num_input_tokens_seen")) or None,
        losses=points(log, "loss") or points(log, "train_loss"),
        evaluation_losses=points(log, "eval_loss"),
        evaluation={k: v for k, v in metrics.items() if k.startswith("eval_") and not k.endswith(_SPEEDS)},
        arguments=told_arguments(arguments),
        max_load=_by_layer(log, "max_load"),
        entropy=_by_layer(log, "entropy"),
        experts=_expert_loads(read_record(folder, STATISTICS_FILE), log),
    )


def points(log: Sequence[Mapping[str, Any]], key: str) -> Points:
    """The finite values of `key` over steps; of two at one step, the later."""
    found: dict[float, float] = {}
    for position, entry in enumerate(log):
        value, step = as_float(entry.get(key)), as_float(entry.get("step"))
        if value is not None and math.isfinite(value):
            found[float(position) if step is None else step] = value
    return tuple(sorted(found.items()))


def _by_layer(log: Sequence[Mapping[str, Any]], figure: str) -> dict[int, Points] | None:
    """The figures of each layer, as `RouterStatisticsCallback` logs them; under -1 where only the total is there."""
    prefix = f"{_ROUTER}layer_"
    keys = {key for entry in log for key in entry if key.startswith(prefix) and key.endswith(f"/{figure}")}
    names = {int(name): key for key in keys if (name := key.removeprefix(prefix).split("/")[0]).isdecimal()}
    found = {layer: points(log, names[layer]) for layer in sorted(names)} or {
        -1: points(log, _ROUTER + figure)
    }
    return {layer: curve for layer, curve in found.items() if curve} or None


def _expert_loads(statistics: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> tuple[ExpertLoad, ...]:
    """Of the file that `RouterStatisticsCallback` leaves, if it is of the training that the log tells of."""
    logged = points(log, f"{_ROUTER}max_load")
    if not logged or logged[-1][0] != as_float(statistics.get("step")):
        return ()
    loads = []
    for layer in as_dicts(statistics.get("layers")):
        index, entropy, counts = (
            as_int(layer.get("layer")),
            as_float(layer.get("entropy")),
            layer.get("counts"),
        )
        if index is None or entropy is None or not isinstance(counts, list):
            return ()
        if not all(as_int(count) is not None and count >= 0 for count in counts) or not sum(counts):
            return ()
        loads.append(ExpertLoad(index, tuple(counts), entropy))
    return tuple(sorted(loads, key=lambda load: load.layer))


def told_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say how a model was trained; none holds a path or a token."""
    told = {key: values[key] for key in _ARGUMENTS if _says_something(key, values.get(key))}
    if "max_steps" in told:  # which overrides it
        told.pop("num_train_epochs", None)
    return told


def _says_something(key: str, value: Any) -> bool:
    return value is not None and not isinstance(value, dict | list) and value != _SILENT.get(key)

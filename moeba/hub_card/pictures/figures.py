"""The pictures of a card, drawn from what a Trainer logged, with the words that stand in for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..text.training import Points, TrainingFacts
from ..text.words import figure
from .heat_map import load_map
from .svg import Line, Panel, line_chart

FOLDER = "figures"


@dataclass(frozen=True)
class Figure:
    """`file` is its path in the model folder; `alt` says in words what it shows, `table` in numbers."""

    file: str
    caption: str
    alt: str
    svg: str
    header: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]


FILES = tuple(f"{FOLDER}/{name}.svg" for name in ("training-loss", "router-balance", "expert-load"))
_ROWS = 12  # of a table beside a figure


def draw(training: TrainingFacts | None) -> list[Figure]:
    """The figures there are logs for; none of a training that these weights are not the result of."""
    if training is None or training.is_of_source:
        return []
    drawn = (_losses(training, FILES[0]), _balance(training, FILES[1]), _experts(training, FILES[2]))
    return [figure for figure in drawn if figure is not None]


def _losses(training: TrainingFacts, file: str) -> Figure | None:
    curves = {"training loss": training.losses, "evaluation loss": training.evaluation_losses}
    curves = {name: points for name, points in curves.items() if points}
    if max((len(points) for points in curves.values()), default=0) < 2:
        return None
    alt = "Loss over training steps. " + " ".join(_course(name, points) for name, points in curves.items())
    lines = [Line(name, points, dots=name.startswith("eval")) for name, points in curves.items()]
    svg = line_chart("Training loss", alt, "optimiser step", [Panel("loss", lines)])
    return Figure(file, "Loss", alt, svg, ("step", *curves), _table(curves))


def _balance(training: TrainingFacts, file: str) -> Figure | None:
    """The layers' means as lines, with a band from the lowest layer to the highest."""
    panels, curves = [], {}
    for name, by_layer, reference, y_range in (
        ("busiest expert's load", training.max_load, (1.0, "even load"), None),
        ("router entropy", training.entropy, (1.0, "all alike"), (0.0, 1.05)),
    ):
        if not by_layer or max(map(len, by_layer.values())) < 2:
            continue
        mean, band = _mean_and_band(by_layer)
        curves[name] = mean
        spread = "; band: all layers" if band else ""
        label = (
            "mean of layers"
            if len(by_layer) > 1
            else "mean"
            if -1 in by_layer
            else f"layer {next(iter(by_layer))}"
        )
        title = f"{name}, 1 = {'an even share' if reference[1] == 'even load' else 'all experts score alike'}{spread}"
        panels.append(Panel(title, [Line(label, mean, band)], reference, y_range))
    if not panels:
        return None
    alt = "Balance of the routers over training steps. " + " ".join(
        _course(name, points) for name, points in curves.items()
    )
    svg = line_chart("Balance of the routers", alt, "optimiser step", panels)
    return Figure(file, "Balance of the routers", alt, svg, ("step", *curves), _table(curves))


def _experts(training: TrainingFacts, file: str) -> Figure | None:
    loads = {load.layer: load.shares for load in training.experts}
    if not loads:
        return None
    layer, expert = max(
        ((a, b) for a in loads for b in range(len(loads[a]))), key=lambda at: loads[at[0]][at[1]]
    )
    idle = sum(share == 0 for shares in loads.values() for share in shares)
    every = sum(map(len, loads.values()))
    alt = (
        f"Tokens of each expert in the last logged steps, compared with an even share. The busiest is expert {expert} "
        f"of layer {layer}, with {loads[layer][expert]:.2f} times its share; {idle} of {every} experts got no token."
    )
    table = tuple(
        (str(load.layer), figure(max(load.shares)), figure(min(load.shares)), str(load.counts.count(0)),
         figure(load.entropy))
        for load in training.experts
    )  # fmt: skip
    header = ("layer", "busiest expert", "least busy", "idle experts", "entropy")
    return Figure(
        file, "Load of the experts", alt, load_map("Load of the experts", alt, loads), header, table
    )


def _mean_and_band(by_layer: Mapping[int, Points]) -> tuple[Points, list[tuple[float, float, float]]]:
    steps = sorted(set.intersection(*({step for step, _ in points} for points in by_layer.values())))
    values = [[dict(points)[step] for points in by_layer.values()] for step in steps]
    mean = tuple((step, sum(row) / len(row)) for step, row in zip(steps, values, strict=True))
    if len(by_layer) == 1:
        return mean, []
    return mean, [(step, min(row), max(row)) for step, row in zip(steps, values, strict=True)]


def _course(name: str, points: Points) -> str:
    """`Training loss: 4.2 at step 10, 2.1 at step 200.`"""
    first, last = points[0], points[-1]
    words = f"{name[0].upper()}{name[1:]}: {figure(first[1])} at step {first[0]:,g}"
    return f"{words}, {figure(last[1])} at step {last[0]:,g}." if first != last else f"{words}."


def _table(curves: Mapping[str, Points]) -> tuple[tuple[str, ...], ...]:
    """Values at some of the steps, spread evenly, the first and the last among them."""
    steps = sorted({step for points in curves.values() for step, _ in points})
    if len(steps) > _ROWS:
        steps = [steps[round(i * (len(steps) - 1) / (_ROWS - 1))] for i in range(_ROWS)]
    values = [dict(points) for points in curves.values()]
    return tuple(
        (f"{step:,g}", *(figure(curve[step]) if step in curve else "" for curve in values)) for step in steps
    )

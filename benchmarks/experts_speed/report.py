"""The tables, in Markdown, and their place in a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .cells import OURS, Cell, is_ours
from .floors import Rates
from .memory import Usage
from .scaling import Growth
from .targets import Reached, judge, memory_ratio

TITLES = {
    "layer": "Experts layer alone",
    "whole": "Whole model",
    "compiled": "Whole model, compiled (static cache)",
    "adapters": "LoRA on experts: forward and backward of one layer",
}


@dataclass
class Results:
    """All that one run measured."""

    device: str
    command: str
    machine: str
    rates: Rates
    fresh_rate: float | None = None  # bytes/s of zeroing new memory
    loads: list[float] = field(default_factory=list)
    minutes: float = 0.0
    models: list[str] = field(default_factory=list)
    shapes: dict[str, str] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    growths: list[tuple[str, Growth]] = field(default_factory=list)  # with their dtype
    compilations: list[tuple[Cell, dict[str, float]]] = field(default_factory=list)
    adapter_usages: list[Usage] = field(default_factory=list)


def render(results: Results) -> str:
    """The whole section."""
    parts = [
        f"## Fast experts: {'a GPU' if results.device == 'cuda' else 'CPU'}",
        f"`{results.command}`, {results.minutes:.0f} minutes. {results.machine}. "
        f"Load {' before and '.join(f'{load:.1f}' for load in results.loads)} after.",
        rates_line(results),
        "Times are medians of interleaved rounds, `±` the interquartile range over the median; without `±` a way was "
        "so slow that it ran once. Each result was compared with eager's before it was timed. `ratio` is the time of "
        "the best stock implementation over moeba's; `most` is what that ratio would be if experts ran at their floor "
        "and everything else took its time (`rest`: the model with experts that answer at once); `of floor` is the "
        "floor over moeba's time, and in brackets over the best stock implementation's.",
        shapes_table(results),
        targets_table(results),
    ]
    parts += [cells_table(results, where) for where in TITLES]
    parts += [
        compilations_line(results),
        memory_table(results.usages, "Peak memory of a training step, 1,024 tokens, experts layer alone"),
        memory_table(results.adapter_usages, "LoRA on experts: peak memory of a training step"),
        growth_table(results),
        refused_table(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def rates_line(results: Results) -> str:
    products = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in results.rates.products.items())
    fresh = f", zeroing new memory {results.fresh_rate / 1e9:.1f} GB/s" if results.fresh_rate else ""
    return f"Measured in the same run: products {products}; reading {results.rates.bandwidth / 1e9:.1f} GB/s{fresh}."


def shapes_table(results: Results) -> str:
    return table(("model", "shape"), results.shapes.items())


def targets_table(results: Results) -> str:
    verdicts = judge(results.device, results.cells, results.usages, results.rates, results.models)
    if not verdicts:
        return ""

    def words(reached: Reached | None) -> str:
        if reached is None:
            return "–"
        most = "" if reached.met or reached.most is None else f", most {reached.most:.2f}"
        return f"{reached.value:.2f} {'met' if reached.met else '**missed**'}{most}"

    rows = [[v.what, v.target, *(words(v.reached[model]) for model in results.models)] for v in verdicts]
    return "### Targets\n\n" + table(("work", "target", *results.models), rows)


def milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cells_table(results: Results, where: str) -> str:
    cells = [cell for cell in results.cells if cell.where == where]
    if not cells:
        return ""
    names = sorted({name for cell in cells for name in cell.timings}, key=lambda name: order(name, cells))
    rows = [cell_row(cell, names, results.rates) for cell in cells]
    headings = (
        "model",
        "dtype",
        "work",
        *(f"{name} ms" for name in names),
        "ratio",
        "most",
        "floor ms",
        "of floor",
        "rounds",
    )
    return f"### {TITLES[where]}\n\n" + table(headings, rows)


def order(name: str, cells: Sequence[Cell]) -> tuple[bool, int]:
    """As measured, moeba's last."""
    return is_ours(name), max(list(cell.timings).index(name) for cell in cells if name in cell.timings)


def cell_row(cell: Cell, names: Sequence[str], rates: Rates) -> list[str]:
    times = []
    for name in names:
        timing = cell.timings.get(name)
        spread = "" if timing is None or timing.spread is None else f" ±{timing.spread:.0%}"
        times.append("–" if timing is None else f"{milliseconds(timing.median)}{spread}")
    floor = cell.floor(rates)
    fractions = [
        best and cell.fraction(best[0], rates) for best in (cell.best(ours=True), cell.best(ours=False))
    ]
    ours, stock = ("–" if fraction is None else f"{fraction:.2f}" for fraction in fractions)
    return [
        cell.model,
        cell.dtype,
        cell.work,
        *times,
        *("–" if ratio is None else f"{ratio:.2f}" for ratio in (cell.ratio, cell.most(rates))),
        "–" if floor is None else milliseconds(floor),
        f"{ours} ({stock})",
        str(max((len(timing.seconds) for timing in cell.timings.values()), default=0)),
    ]


def compilations_line(results: Results) -> str:
    lines = [
        f"{cell.model} {cell.dtype}: "
        + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items())
        for cell, times in results.compilations
        if times
    ]
    return f"Compiling took, with whatever was cached: {'; '.join(lines)}." if lines else ""


def memory_table(usages: Sequence[Usage], title: str) -> str:
    if not usages:
        return ""
    rows = []
    for model, dtype in dict.fromkeys((usage.model, usage.dtype) for usage in usages):
        ratio = memory_ratio(usages, model, dtype)
        for usage in (usage for usage in usages if (usage.model, usage.dtype) == (model, dtype)):
            sizes = [f"{size / 1e6:.0f}" for size in (usage.peak, usage.gradients, usage.activations)]
            share = f"{ratio:.2f}" if usage.name == OURS and ratio is not None else ""
            rows.append([model, dtype, usage.name, *sizes, share])
    headings = (
        "model",
        "dtype",
        "implementation",
        "peak MB",
        "weights' gradients MB",
        "the rest MB",
        "of least stock",
    )
    return f"### {title}\n\n" + table(headings, rows)


def growth_table(results: Results) -> str:
    if not results.growths:
        return ""
    cells = [cell for _, growth in results.growths for cell in (growth.step, growth.with_optimizer)]
    names = sorted({name for cell in cells for name in cell.timings}, key=lambda name: order(name, cells))
    rows = []
    for dtype, growth in results.growths:
        sizes = [f"{size / 1e6:.0f}" for size in (growth.weights, growth.gradients, growth.optimizer)]
        for label, cell in (("", growth.step), ("and AdamW", growth.with_optimizer)):
            row = cell_row(cell, names, results.rates)
            rows.append([str(growth.experts), dtype, label, *sizes, *row[3:-1]])
    headings = ("experts", "dtype", "", "weights MB", "gradients MB", "optimizer MB",
                *(f"{name} ms" for name in names), "ratio", "most", "floor ms", "of floor")  # fmt: skip
    return (
        "### Growing the number of experts\n\nA training step of one layer, 1,024 tokens, active parameters constant. "
        "With the experts grow the weights, their gradients and both moments of AdamW; nothing else has to.\n\n"
        + table(headings, rows)
    )


def refused_table(results: Results) -> str:
    """Each reason once, with the works it was given for."""
    cells = [
        *results.cells,
        *(c for _, growth in results.growths for c in (growth.step, growth.with_optimizer)),
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        for name, reason in cell.outcome.refused.items():
            reasons.setdefault((name, reason), []).append(
                f"{cell.where} {cell.model} {cell.dtype} {cell.work}"
            )
    if not reasons:
        return ""
    rows = [
        (
            name,
            reason.replace("|", "\\|"),
            works[0] if len(works) == 1 else f"{len(works)} works, first {works[0]}",
        )
        for (name, reason), works in sorted(reasons.items())
    ]
    return "### Not measured, and why\n\n" + table(("implementation", "reason", "where"), rows)


def write_section(path: Path, key: str, text: str) -> None:
    """Put a section into a file, in the place of an earlier one of the same key, or at its end."""
    begin, end = f"<!-- {key}: begin -->", f"<!-- {key}: end -->"
    section = f"{begin}\n{text.rstrip()}\n{end}"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if begin in old and end in old:
        before, rest = old.split(begin, 1)
        new = before + section + rest.split(end, 1)[1]
    else:
        new = f"{old.rstrip()}\n\n{section}\n".lstrip()
    path.write_text(new, encoding="utf-8")

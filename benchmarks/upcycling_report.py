"""Tables of the upcycling experiment: means and spreads over seeds, and which differences stand out of them.

python benchmarks/upcycling_report.py results.json
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moeba.training import LayerStatistics

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
WITHIN = "within the spread"


def balance(code: Sequence[LayerStatistics], prose: Sequence[LayerStatistics]) -> dict[str, Any]:
    """How routers spread held-out tokens, by sparse layer; nothing for a dense model.

    Returns:
        `max_load`: of the busiest expert, 1 is balance. `dead_fraction`: of experts without a token. `entropy`: of the
        router's scores. `separation`: total variation between the experts' shares of both domains, 0 when a domain
        does not matter, 1 when no expert serves both.
    """
    if not code:
        return {}
    both = [
        LayerStatistics(
            a.layer, a.tokens + b.tokens, tuple(map(sum, zip(a.counts, b.counts, strict=True))), 0.0
        )
        for a, b in zip(code, prose, strict=True)
    ]
    return {
        "layers": [layer.layer for layer in both],
        "max_load": [layer.max_load for layer in both],
        "dead_fraction": [layer.dead_fraction for layer in both],
        "entropy": [(a.entropy + b.entropy) / 2 for a, b in zip(code, prose, strict=True)],
        "separation": [
            sum(abs(p - q) for p, q in zip(a.shares, b.shares, strict=True)) / 2
            for a, b in zip(code, prose, strict=True)
        ],
    }


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; of a single value, no deviation is known."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def compare(values: Sequence[float], control: Sequence[float]) -> tuple[float, float, str]:
    """Relative change in perplexity from the control's, seed by seed: mean, deviation, and what may be said.

    Better or worse is said where the 95 % interval of the mean (Student's t) leaves 0 out.
    """
    changes = [math.log(value / other) for value, other in zip(values, control, strict=True)]
    mean, deviation = spread(changes)
    if len(changes) < 2:
        return mean, deviation, "one seed"
    reach = T_95.get(len(changes) - 1, 1.96) * deviation / math.sqrt(len(changes))
    verdict = WITHIN if abs(mean) <= reach else "better" if mean < 0 else "worse"
    return mean, deviation, verdict


def markdown(results: dict[str, Any]) -> str:
    """All tables of one `results.json`."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        grouped.setdefault(run["variant"], []).append(run)
    parts = [_header(results), _perplexities(results["base"], grouped)]
    if "merged" in grouped:
        parts.append(_specialists(grouped["merged"]))
    if len(copies := [name for name in grouped if name.startswith("copy")]) > 1:
        parts.append("Router starts of the copies:\n\n" + _starts(grouped, copies))
    if any(runs[0]["balance"] for runs in grouped.values()):
        parts.append("Routers on the held-out tokens, mean over seeds:\n\n" + _balances(grouped))
    return "\n\n".join(parts) + "\n"


def _header(results: dict[str, Any]) -> str:
    tokens, base = results["corpus"]["tokens"], results["base"]
    seeds = sorted({run["seed"] for run in results["runs"]})
    return (
        f"{results['machine']}. Training tokens {tokens['train-code']:,} of each domain, base of "
        f"{base['parameters']:,} parameters trained for {base['steps']} steps, seeds {', '.join(map(str, seeds))}."
    )


def _perplexities(base: dict[str, Any], grouped: dict[str, list[dict[str, Any]]]) -> str:
    rows = [
        "| run | parameters | active | steps | TFLOPs | before | code | prose | overall | against dense | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| base, not continued | {base['parameters'] / 1e6:.2f}M | | | | | {base['after']['code']:.3f} | "
        f"{base['after']['prose']:.3f} | {base['after']['overall']:.3f} | | |",
    ]
    for name, runs in grouped.items():
        first = runs[0]
        before = statistics.mean(run["before"]["overall"] for run in runs)
        cells = [
            name,
            f"{first['parameters'] / 1e6:.2f}M",
            f"{first['active_parameters'] / 1e6:.2f}M",
            f"{first['steps']}",
            f"{first['flops'] / 1e12:.3f}",
            f"{before:.3f}",
            *(_plus_minus([run["after"][part] for run in runs]) for part in ("code", "prose", "overall")),
            *(_against(runs, grouped["dense"]) if "dense" in grouped and name != "dense" else ("", "")),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _specialists(runs: list[dict[str, Any]]) -> str:
    found = []
    for own in runs[0]["specialists"]:
        reached = {
            domain: _plus_minus([run["specialists"][own][domain] for run in runs])
            for domain in ("code", "prose")
        }
        found.append(f"of {own} {reached['code']} on code and {reached['prose']} on prose")
    return f"The merge's specialists reach: that {'; that '.join(found)}."


def _starts(grouped: dict[str, list[dict[str, Any]]], names: Sequence[str]) -> str:
    """The copies by their router, also against the dense model on the same windows."""
    controls = [("copy", "normal"), ("dense-copy-steps", "dense, same steps")]
    controls = [(name, words) for name, words in controls if name in grouped]
    rows = [
        "| router | overall |" + "".join(f" against {words} | |" for _, words in controls),
        "| --- | --- |" + " --- | --- |" * len(controls),
    ]
    for name in names:
        runs = grouped[name]
        cells = [name.removeprefix("copy").strip("-") or "normal"]
        cells.append(_plus_minus([run["after"]["overall"] for run in runs]))
        for control, _ in controls:
            cells += _against(runs, grouped[control]) if name != control else ("", "")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _balances(grouped: dict[str, list[dict[str, Any]]]) -> str:
    rows = [
        "| run | busiest expert, worst layer | experts without a token | entropy | separation of the domains |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, runs in grouped.items():
        found = [run["balance"] for run in runs if run["balance"]]
        if found:
            worst = statistics.mean(max(one["max_load"]) for one in found)
            means = [
                statistics.mean(statistics.mean(one[key]) for one in found)
                for key in ("dead_fraction", "entropy", "separation")
            ]
            rows.append(f"| {name} | {worst:.2f} | {means[0]:.1%} | {means[1]:.2f} | {means[2]:.2f} |")
    return "\n".join(rows)


def _against(runs: list[dict[str, Any]], control: list[dict[str, Any]]) -> tuple[str, str]:
    """Over the seeds that both have."""
    reached = [{run["seed"]: run["after"]["overall"] for run in side} for side in (runs, control)]
    seeds = sorted(reached[0].keys() & reached[1].keys())
    mean, deviation, verdict = compare(*([side[seed] for seed in seeds] for side in reached))
    return f"{mean:+.2%} ± {deviation:.2%}", verdict


def _plus_minus(values: Sequence[float]) -> str:
    mean, deviation = spread(values)
    return f"{mean:.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))

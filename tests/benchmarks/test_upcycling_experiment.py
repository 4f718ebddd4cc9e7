"""The upcycling experiment: what it calls code, what it calls a difference, and the whole of it in its quick size."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from moeba.training import LayerStatistics

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Import a module from beside the benchmarks, as running one of them would."""
    pytest.importorskip("datasets")
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        module = importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
        return module

    return load


def test_code_has_neither_comments_nor_docstrings(benchmark):
    bare_code = benchmark("upcycling_experiment").bare_code
    source = (
        '"""module"""\nx = "# kept"  # lost\n\ndef f():\n    """docs"""\n\nclass C:\n    "docs"\n    y = 1\n'
    )
    bare = bare_code(source)
    assert ast.dump(ast.parse(bare)) == ast.dump(
        ast.parse('x = "# kept"\ndef f():\n    pass\nclass C:\n    y = 1')
    )
    assert "lost" not in bare
    assert bare_code('"""only words"""\n') == ""
    assert bare_code("def f(:") == ""


def test_a_difference_is_named_only_beyond_the_spread(benchmark):
    report = benchmark("upcycling_report")
    control = [10.0, 11.0, 12.0]
    assert report.compare([9.0, 9.9, 10.9], control)[2] == "better"
    assert report.compare([10.5, 11.5, 12.6], control)[2] == "worse"
    mean, deviation, verdict = report.compare([9.0, 11.5, 12.3], control)
    assert verdict == report.WITHIN
    assert abs(mean) < deviation
    # Three seeds agree on the sign, and that is not enough: t is 4.3 with two degrees of freedom.
    assert report.compare([9.9, 10.99, 11.9], control)[2] == report.WITHIN
    assert report.compare([9.0], [10.0])[2] == "one seed"


def test_balance_of_routers_over_two_domains(benchmark):
    balance = benchmark("upcycling_report").balance
    apart = balance([LayerStatistics(1, 8, (8, 0, 0), 0.5)], [LayerStatistics(1, 8, (0, 8, 0), 0.7)])
    assert apart == {
        "layers": [1],
        "max_load": [pytest.approx(1.5)],
        "dead_fraction": [pytest.approx(1 / 3)],
        "entropy": [pytest.approx(0.6)],
        "separation": [1.0],
    }
    alike = [LayerStatistics(1, 8, (4, 4), 1.0)]
    assert balance(alike, alike)["separation"] == [0.0]
    assert balance([], []) == {}


@pytest.mark.slow
def test_the_quick_experiment(tmp_path):
    pytest.importorskip("datasets")
    variants = ["dense", "copy", "copy-calibration", "fine-grained", "drop", "merged", "dense-copy-steps"]
    command = [
        sys.executable,
        str(FOLDER / "upcycling_experiment.py"),
        "--quick",
        "--folder",
        str(tmp_path / "x"),
    ]
    command += ["--seeds", "1", "--variants", *variants]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent), "HF_HUB_OFFLINE": "1"}

    def run() -> tuple[str, dict]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, json.loads((tmp_path / "x" / "results.json").read_text())

    said, results = run()
    assert results["base"]["certificate"] == "verified"
    runs = {run["variant"]: run for run in results["runs"]}
    assert list(runs) == variants
    shorter = runs.pop("dense-copy-steps")
    assert shorter["steps"] == runs["copy"]["steps"] < runs["dense"]["steps"]
    for variant, figures in runs.items():
        # A budget is spent to within half a step of what it was spent on, the specialists' steps included.
        assert figures["flops"] == pytest.approx(runs["dense"]["flops"], rel=0.15)
        exact = variant in ("dense", "copy", "copy-calibration", "fine-grained")
        kept = figures["before"]["overall"] == pytest.approx(results["base"]["after"]["overall"], rel=1e-4)
        assert kept == exact, variant
        assert figures["after"]["overall"] < figures["before"]["overall"]
        assert bool(figures["balance"]) == (variant != "dense")
        assert f"| {variant} |" in said

    again, same = run()  # everything is taken over, to the second
    assert same == results
    assert again == said[said.index(results["machine"]) :]

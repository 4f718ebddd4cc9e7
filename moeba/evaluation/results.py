"""What was measured, as a record beside the model and as results that the Hub shows.

`evaluation.json` holds `{"format_version": 1, "files": {name: sha256}, "results": [...]}`. `files` are the weights
that were measured, and all results are of these: one for each dataset and task, with every figure (`metrics`, their
standard `errors`, and `counts` of what they are over), what identifies the data, and every setting that the figures
depend on. For a dataset of the Hub there is a file in `.eval_results/` as well, in the Hub's own format.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ..conversion.json_files import read_json
from ..conversion.provenance import EVALUATION_FILE

HUB_FOLDER = ".eval_results"
FORMAT_VERSION = 1
_IDENTITY = ("id", "config", "split", "name", "fields")  # of the data: a newer result on the same replaces it
# Figures that the Hub's leaderboards are told of; the others are in the record.
_HEADLINES = ("perplexity", "bits_per_byte", "token_accuracy", "accuracy", "accuracy_norm")


@dataclass(frozen=True)
class Evaluation:
    """What one model made of one dataset.

    Attributes:
        model: the folder's name or the Hub id; no path, since the record is published.
        task: as the Hub calls it, `text-generation` or `multiple-choice`.
        metrics: None where a figure is not known.
        errors: the standard errors of those metrics that have one.
        counts: how many tokens, bytes or questions they are over.
        dataset: `Rows.source`, and `fields`: the parts of a row that were read.
        settings: whatever else the figures depend on.
        versions: of the libraries. date: of the end, UTC, ISO 8601.
    """

    model: str
    task: str
    metrics: Mapping[str, float | None]
    errors: Mapping[str, float]
    counts: Mapping[str, int | None]
    dataset: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    date: str


def save(evaluation: Evaluation, folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Write a result into a model folder, in place of an older one on the same data and of those of other weights.

    Args:
        files: SHA-256 of each weight file.

    Returns:
        the files that were written.

    Raises:
        ValueError: the folder's own record is damaged or of another format; nothing is changed then.
    """
    standing, measured = read_results(folder)
    result = {name: _finite(value) for name, value in vars(evaluation).items()}
    kept = [other for other in standing if measured == files and _identity(other) != _identity(result)]
    document = {"format_version": FORMAT_VERSION, "files": dict(files), "results": [*kept, result]}
    _replace(
        folder / EVALUATION_FILE,
        json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    )
    for other in standing:
        if other not in kept and (stale := _hub_file(folder, other)):
            stale.unlink(missing_ok=True)
    hub_file = _hub_file(folder, result)
    if hub_file is None:
        return [folder / EVALUATION_FILE]
    hub_file.parent.mkdir(exist_ok=True)
    entries = eval_result_entries_to_yaml(_entries(result))
    _replace(hub_file, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))
    return [folder / EVALUATION_FILE, hub_file]


def read_results(folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The results in a folder's record, and the weights that they are of; both empty where there is no record.

    Raises:
        ValueError: see `save`.
    """
    path = folder / EVALUATION_FILE
    if not path.is_file():
        return [], {}
    document = read_json(path)
    version, results, files = (document.get(name) for name in ("format_version", "results", "files"))
    if version != FORMAT_VERSION or not isinstance(results, list) or not isinstance(files, dict):
        raise ValueError(
            f"{path} is of another format than this version of moeba writes ({FORMAT_VERSION}): move it away"
        )
    return results, files


def _identity(result: Mapping[str, Any]) -> tuple[Any, ...]:
    dataset = result.get("dataset") or {}
    return (result.get("task"), *(json.dumps(dataset.get(name)) for name in _IDENTITY))


def _entries(result: Mapping[str, Any]) -> list[EvalResultEntry]:
    dataset, metrics = result["dataset"], result["metrics"]
    where = [f"{name} {dataset[name]}" for name in ("config", "split") if dataset.get(name)]
    how = [
        f"{name.replace('_', ' ')} {value}" for name, value in result["settings"].items() if value is not None
    ]
    return [
        EvalResultEntry(
            dataset_id=dataset["id"],
            task_id=name,
            value=round(metrics[name], 6),
            dataset_revision=dataset.get("revision"),
            date=result["date"],
            notes=", ".join([*where, *how, f"moeba {result['versions']['moeba']}"]),
        )
        for name in _HEADLINES
        if metrics.get(name) is not None
    ]


def _hub_file(folder: Path, result: Mapping[str, Any]) -> Path | None:
    """`user-name-config-test-text-generation.yaml`; None for data that is not on the Hub."""
    dataset = result.get("dataset") or {}
    if not dataset.get("id"):
        return None
    words = [dataset["id"], dataset.get("config"), dataset.get("split"), result.get("task")]
    slug = re.sub(r"[^\w.-]+", "-", "-".join(str(word) for word in words if word))
    return folder / HUB_FOLDER / f"{slug}.yaml"


def _finite(value: Any) -> Any:
    """JSON and YAML readers do not agree on infinities: such a figure is left empty."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)

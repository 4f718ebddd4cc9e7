"""What was measured of the model on data: `evaluation.json`, and the results in the form of the Hub's leaderboards.

`evaluation.json` is `{"format_version": 1, "files": {name: sha256}, "results": [...]}`, where `files` are the weights
that were measured and each result has `dataset` (`id` of the Hub or `name`, `config`, `split`, `revision`),
`metrics` (name -> number), and if it likes `task`, `settings`, `counts` and `date`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..reading.records import as_dict, as_dicts, as_float, as_text, as_texts_of, read_record
from .words import cell, figure, figures

FILE, LEADERBOARD_FOLDER = "evaluation.json", ".eval_results"
_HEADLINES = ("perplexity", "accuracy")  # which metric a single line shows, if it is there


@dataclass(frozen=True)
class Result:
    """Metrics of one dataset."""

    dataset: str
    dataset_id: str | None  # on the Hub
    config: str | None
    split: str | None
    revision: str | None
    task: str
    metrics: Mapping[str, float]
    settings: Mapping[str, Any]  # and what the figures are over
    date: str | None  # ISO 8601

    @property
    def place(self) -> str:
        """`wikitext, wikitext-2-raw-v1, test`."""
        return ", ".join(name for name in (self.dataset, self.config, self.split) if name)

    @property
    def how(self) -> str:
        """`tokens 4096, window 512; revision 1a2b3c4d, 2026-11-21`."""
        revision = f"revision {self.revision[:8]}" if self.revision else ""
        origin = ", ".join(word for word in (revision, (self.date or "")[:10]) if word)
        return "; ".join(words for words in (figures(self.settings), origin) if words)


@dataclass(frozen=True)
class EvaluationFacts:
    results: tuple[Result, ...]
    files: Mapping[str, str]  # the weights that were measured, name -> sha256; empty if not recorded

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for result in self.results for name in result.metrics))

    @property
    def headline(self) -> str:
        """The first result in a few words."""
        result = self.results[0]
        name = next((name for name in _HEADLINES if name in result.metrics), next(iter(result.metrics)))
        return f"{cell(name.replace('_', ' '))} {figure(result.metrics[name])} on {cell(result.place)}"

    @property
    def rows(self) -> list[list[str]]:
        """For a table: where, each metric, and how it was measured."""
        return [
            [
                cell(result.place),
                *(cell(figure(result.metrics[m])) if m in result.metrics else "" for m in self.metrics),
            ]
            + [cell(result.how)]
            for result in self.results
        ]

    @property
    def header(self) -> list[str]:
        return ["dataset", *(cell(name.replace("_", " ")) for name in self.metrics), "how"]

    def model_index(self, name: str) -> list[dict[str, Any]]:
        """The older form, inside the card's metadata, under a name for the model."""
        return eval_results_to_model_index(
            name, [entry for result in self.results for entry in _entries(result)]
        )


def evaluation_facts(folder: Path) -> EvaluationFacts | None:
    """Of `evaluation.json`; without one, of the leaderboard files."""
    record = read_record(folder, FILE)
    found = [_result(item) for item in as_dicts(record.get("results"))] or list(_leaderboard_results(folder))
    results = tuple(result for result in found if result.metrics)
    if not results:
        return None
    return EvaluationFacts(results, as_texts_of(as_dict(record.get("files"))))


def _result(item: Mapping[str, Any]) -> Result:
    dataset = as_dict(item.get("dataset"))
    name, identity = as_text(dataset.get("name")), as_text(dataset.get("id"))
    return Result(
        dataset=identity or name or "a dataset without a name",
        dataset_id=identity,
        config=as_text(dataset.get("config")),
        split=as_text(dataset.get("split")),
        revision=as_text(dataset.get("revision")),
        task=as_text(item.get("task")) or "text-generation",
        metrics=_numbers(as_dict(item.get("metrics"))),
        settings={
            key: value
            for key, value in (as_dict(item.get("counts")) | as_dict(item.get("settings"))).items()
            if isinstance(value, str | int | float | bool)
        },
        date=as_text(item.get("date")),
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: n for k, v in values.items() if (n := as_float(v)) is not None and math.isfinite(n)}


def _leaderboard_results(folder: Path) -> Iterator[Result]:
    for path in sorted(p for p in (folder / LEADERBOARD_FOLDER).glob("*.yaml") if p.is_file()):
        try:
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        for entry in as_dicts(entries):
            dataset = as_dict(entry.get("dataset"))
            identity, task = as_text(dataset.get("id")), as_text(dataset.get("task_id"))
            if identity and task:
                yield _result(
                    {
                        "dataset": {"id": identity, "revision": dataset.get("revision")},
                        "metrics": {task: entry.get("value")},
                        "settings": {"notes": entry["notes"]} if entry.get("notes") else {},
                    }
                )


def _entries(result: Result) -> Sequence[EvalResult]:
    return [
        EvalResult(
            task_type=result.task,
            dataset_type=result.dataset_id or result.dataset,
            dataset_name=result.place,
            dataset_config=result.config,
            dataset_split=result.split,
            dataset_revision=result.revision,
            metric_type=name,
            metric_value=value,
        )
        for name, value in result.metrics.items()
    ]

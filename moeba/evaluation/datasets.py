"""Rows of a dataset: from the Hub, streamed or not, or from a local file. What was read is recorded with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from ..conversion.checkpoint import sha256_of
from ..conversion.paths import expanded

_TEXT = "text"
# Ending of a file -> builder of `datasets`; text is read here.
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": (_TEXT, {}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
}


@dataclass(frozen=True)
class Rows:
    """A dataset that can be read again and again.

    Attributes:
        source: identifies what is read: Hub id, config, split and commit, or a local file's name and SHA-256.
        count: of rows; None where it is streamed.
        most: no more than these first rows are read.
    """

    rows: Iterable[Mapping[str, Any]]
    source: Mapping[str, Any]
    count: int | None = None
    most: int | None = None

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Raises ValueError where a row cannot be read, naming it."""
        reader = enumerate(islice(iter(self.rows), self.most))
        number = -1
        while True:
            try:
                number, row = next(reader)
            except StopIteration:
                return
            except Exception as error:
                raise ValueError(f"the row after row {number} could not be read: {_reason(error)}") from error
            yield row


def load_rows(
    dataset: str | Path,
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    max_rows: int | None = None,
) -> Rows:
    """Open a dataset.

    Args:
        dataset: a file (.txt, .jsonl, .json, .csv, .tsv, .parquet) or a Hub id. A file wins over a Hub id.
        config: of a Hub dataset that has several.
        split: default `test` on the Hub; a file has no splits.
        revision: branch, tag or commit on the Hub; its commit is looked up first, and recorded.
        streaming: read rows as they are needed instead of downloading and preparing all of them first.
        max_rows: read no more than these first ones.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: there is no such file or dataset, its type is unknown, or it is damaged.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError('evaluating needs datasets: pip install "moeba[evaluate]"') from error
    path = expanded(dataset)
    if path.exists():
        source, arguments = _local(path, {"config": config, "split": split, "revision": revision})
    else:
        source, arguments = _remote(str(dataset), config, split or "test", revision)
    try:
        is_text = arguments["path"] == _TEXT
        rows = _document(path) if is_text else datasets.load_dataset(**arguments, streaming=streaming)
    except Exception as error:
        raise ValueError(f"{dataset} could not be read: {_reason(error)}") from error
    if streaming:
        return Rows(rows, source, None, max_rows)
    return Rows(rows, source, min(len(rows), max_rows or len(rows)), max_rows)


def _document(path: Path) -> list[dict[str, str]]:
    """A text file, which is one document, with the ends of its lines as they are on the disk."""
    return [{"text": path.read_bytes().decode("utf-8")}]


def texts_of(rows: Rows, field: str, join: str | None = None) -> Iterator[str]:
    """The texts in one field, each row a document of its own, or with `join` all of them in a single one.

    Raises:
        ValueError: a row lacks the field, or holds something else than text in it.
    """
    texts = (_text(row, number, field) for number, row in enumerate(rows))
    yield from texts if join is None else [join.join(texts)]


def _text(row: Mapping[str, Any], number: int, field: str) -> str:
    if field not in row:
        raise ValueError(f"row {number} has no field {field!r}: it has {', '.join(row)}")
    if not isinstance(row[field], str):
        kind = type(row[field]).__name__
        raise ValueError(f"row {number}: {field!r} must be a text, not {kind} {row[field]!r:.80}")
    return row[field]


def _local(path: Path, unused: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    if given := [name for name, value in unused.items() if value is not None]:
        raise ValueError(f"{path} is a local file, which has no {' or '.join(given)}: leave it out")
    if path.is_dir() or path.suffix not in _BUILDERS:
        what = "a folder" if path.is_dir() else f"a file ending in {path.suffix!r}"
        raise ValueError(f"{path} is {what}: give a file ending in {', '.join(_BUILDERS)}, or a Hub id")
    builder, options = _BUILDERS[path.suffix]
    source = {"name": path.name, "sha256": sha256_of(path)}
    return source, {"path": builder, "data_files": {"train": str(path)}, "split": "train", **options}


def _remote(
    repo_id: str, config: str | None, split: str, revision: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", repo_id):
        raise ValueError(f"{repo_id} is neither a file here nor a Hub id of the form user/name")
    try:
        commit = HfApi().dataset_info(repo_id, revision=revision).sha
    except OfflineModeIsEnabled:
        # What lies in the cache is read; of which commit it is, is known only where that was asked for.
        commit = revision if re.fullmatch("[0-9a-f]{40}", revision or "") else None
    except Exception as error:
        raise ValueError(
            f"{repo_id} is no file here and could not be found on the Hub: {_reason(error)}"
        ) from error
    source = {"id": repo_id, "config": config, "split": split, "revision": commit}
    return source, {"path": repo_id, "name": config, "split": split, "revision": commit or revision}


def _reason(error: BaseException) -> str:
    """The last cause, which says more than the errors wrapped around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__

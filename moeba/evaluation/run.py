"""Models measured one after the other on the same data, so that their figures can be compared."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from ..conversion.checkpoint import Checkpoint, resolve
from ..conversion.paths import expanded
from ..conversion.provenance import versions
from .datasets import Rows, load_rows
from .language_modeling import BATCH
from .results import Evaluation, read_results, save
from .subject import DTYPES, LONGEST, Subject, load_subject, longest_input
from .tasks import LanguageModeling, MultipleChoice, Task

Progress = Callable[[int, "int | None", str], None]
"""`progress(done, total, model)`, in bytes of text or in questions; no total where it is not known beforehand."""


def evaluate(
    models: str | Path | Sequence[str | Path],
    dataset: str | Path,
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    max_rows: int | None = None,
    field: str = "text",
    join: str | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
    choices: str | None = None,
    label: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    bos: bool = True,
    batch_size: int = BATCH,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    save_results: bool = False,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Perplexity of texts, or accuracy of answers where `prompt`, `choices` and `label` are given.

    Texts: every token is predicted once, from at least the `window - stride` tokens before it (one less for a
    start token), or from its document's beginning. Each window starts with what the tokenizer puts before a text,
    or else its BOS or else EOS token; this is never counted. Perplexity is a token's. Bits per byte are over the
    UTF-8 bytes of the text, and so compare models of different tokenizers.

    Answers: the choice of the highest log-likelihood after the prompt, in all and (`norm`) for each character.

    Args:
        models: folders or Hub ids, native or Moeba, loaded one at a time.
        dataset: a file or a Hub id; `config`, `split`, `revision`, `streaming`, `max_rows`: see `load_rows`.
        field: holds a row's text. Each row is a document, or with `join`, all are one with this between them.
        max_tokens: the texts are cut where the first model's tokenizer has made so many; all models read the same.
        prompt: the question of a row, such as `{question}`; `choices` and `label`: see `question_from`.
        window: tokens of one input; default what all models are made for, at most 2048.
        stride: tokens that each window but the first predicts; default half the window.
        bos: start windows of text with a start token. Without it, a document's first token is not predicted.
        dtype: `auto` (as stored), `float32`, `bfloat16` or `float16`.
        device: default the first GPU, or the CPU where there is none.
        save_results: write `evaluation.json`, and results for the Hub, into each model's folder.

    Returns:
        one result a model, in their order.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: a model or the dataset does not allow it; the message says what and where.
    """
    names = [str(model) for model in ([models] if isinstance(models, str | Path) else models)]
    if not names:
        raise ValueError("no model is given")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    asked = _choice_fields(prompt, choices, label)
    for_texts = {"join": join, "stride": stride, "max_tokens": max_tokens}
    if asked and (given := [name for name, value in for_texts.items() if value is not None]):
        raise ValueError(f"{' and '.join(given)}: these are for texts, leave them out with choices")
    for name, value in {"batch_size": batch_size, "max_tokens": max_tokens, "max_rows": max_rows}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    folders = [resolve(name, any_type=True) for name in names]
    window = _window(window, dict(zip(names, folders, strict=True)), trust_remote_code)
    weights = [
        _hashes(name, folder) if save_results else None for name, folder in zip(names, folders, strict=True)
    ]
    rows = load_rows(
        dataset, config=config, split=split, revision=revision, streaming=streaming, max_rows=max_rows
    )
    task: Task
    if asked:
        task = MultipleChoice(rows, *asked, window, batch_size)
    else:
        stride = max(1, window // 2) if stride is None else stride
        task = LanguageModeling(rows, field, join, window, stride, max_tokens, bos, batch_size)
    evaluations = []
    for name, folder, hashes in zip(names, folders, weights, strict=True):
        subject = load_subject(name, folder, dtype, device, trust_remote_code)
        found = _measure(subject, task, rows, batch_size, progress)
        del subject
        _free()
        evaluations.append(found)
        if hashes is not None:
            save(found, folder, hashes)
    return evaluations


def _measure(
    subject: Subject,
    task: Task,
    rows: Rows,
    batch_size: int,
    progress: Progress | None,
) -> Evaluation:
    def tell(done: int, total: int | None) -> None:
        if progress:
            progress(done, total, subject.name)

    figures = task.measure(subject, tell)
    path = expanded(subject.name)
    parameter = next(subject.model.parameters())
    settings = {
        **task.settings,
        "start_tokens": task.start_of(subject),
        "max_rows": rows.most,
        "batch_size": batch_size,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
    }
    return Evaluation(
        model=path.resolve().name if path.is_dir() else subject.name,
        task=task.name,
        metrics=figures.metrics,
        errors=figures.errors,
        counts=figures.counts,
        dataset={**rows.source, "fields": dict(task.fields)},
        settings=settings,
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _choice_fields(prompt: str | None, choices: str | None, label: str | None) -> tuple[str, str, str] | None:
    if prompt is not None and choices is not None and label is not None:
        return prompt, choices, label
    if prompt is not None or choices is not None or label is not None:
        raise ValueError("prompt, choices and label belong together: give all three, or none for texts")
    return None


def _window(window: int | None, models: dict[str, Path], trust_remote_code: bool) -> int:
    limits = {name: longest_input(folder, trust_remote_code) for name, folder in models.items()}
    if window is None:
        return min([LONGEST, *(limit for limit in limits.values() if limit)])
    if window < 2:
        raise ValueError(f"window={window} must be at least 2: one token of context, and one to predict")
    for name, limit in limits.items():
        if limit and window > limit:
            raise ValueError(f"window={window}: {name} is made for inputs of at most {limit} tokens")
    return window


def _hashes(name: str, folder: Path) -> dict[str, str]:
    """Of the weight files, before the work begins: what cannot be saved is said now."""
    if not expanded(name).is_dir():
        raise ValueError(
            f"{name} is a model of the Hub, and results are written into a folder: download it first"
        )
    read_results(folder)
    return Checkpoint(folder).sha256()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Questions with choices: a model's answer is the choice it finds likeliest after the question."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from torch import nn

from .scoring import score
from .windows import Window


@dataclass(frozen=True)
class Question:
    """Attributes:
    context: what stands before the choices; a space is put between.
    answer: index of the right choice.
    """

    context: str
    choices: Sequence[str]
    answer: int


def question_from(row: Mapping[str, Any], number: int, prompt: str, choices: str, label: str) -> Question:
    """The question in one row of a dataset.

    Args:
        prompt: names fields of the row, as in `Question: {question}`; a choice follows it after a space.
        choices: a field with a list of texts, or a mapping with the lists `text` and `label`.
        label: a field with an index (a number, or its digits), one of the mapping's labels, or a choice's text.

    Raises:
        ValueError: a field is missing or holds something else; the message names row and field.
    """
    where = f"row {number}"
    for name in (choices, label):
        if name not in row:
            raise ValueError(f"{where} has no field {name!r}: it has {', '.join(row)}")
    context, given, wanted = _fill(prompt, row, where), row[choices], row[label]
    listed, names = (
        (given.get("text"), given.get("label") or ()) if isinstance(given, Mapping) else (given, ())
    )
    if (
        not isinstance(listed, Sequence)
        or isinstance(listed, str)
        or len(listed) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in listed)
    ):
        raise ValueError(f"{where}: {choices!r} must hold at least two texts, not {row[choices]!r}")
    return Question(context, listed, _answer(wanted, listed, list(names), f"{where}: {label!r}"))


def score_questions(
    model: nn.Module,
    encode: Callable[[str], list[int]],
    questions: Iterable[Question],
    *,
    window: int,
    start: Sequence[int],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, float], dict[str, float], int]:
    """The share of right answers: by log-likelihood, and (`norm`) by log-likelihood for each character of a choice.

    A choice is scored from the first token on that differs between the question's choices or from the question
    alone, so that all are conditioned on the same tokens. Of equally likely choices the first is the answer.
    Questions that do not fit the window lose their beginning.

    Args:
        progress: called with the count of questions that are done.

    Returns:
        the metrics, their standard errors, and how many questions they are over.

    Raises:
        ValueError: there is no question, or a choice alone does not fit the window.
    """
    asked: list[tuple[Question, list[float]]] = []

    def windows() -> Iterator[Window]:
        for question in questions:
            tokenized = [encode(f"{question.context} {choice}") for choice in question.choices]
            shared = len(commonprefix([encode(question.context), *tokenized]))
            asked.append((question, [math.nan] * len(tokenized)))
            for index, tokens in enumerate(tokenized):
                yield _window(tokens, shared, window, start, (len(asked) - 1, index))

    done = 0
    for found in score(model, windows(), batch_size):
        number, index = found.window.origin
        likelihoods = asked[number][1]
        likelihoods[index] = found.log_likelihood
        if progress and not any(map(math.isnan, likelihoods)):
            progress(done := done + 1)
    if not asked:
        raise ValueError("there is no question in the dataset")
    right = {
        "accuracy": sum(_best(found) == question.answer for question, found in asked),
        "accuracy_norm": sum(
            _best(_for_each_character(question, found)) == question.answer for question, found in asked
        ),
    }
    metrics = {name: count / len(asked) for name, count in right.items()}
    return metrics, {name: _standard_error(share, len(asked)) for name, share in metrics.items()}, len(asked)


def _fill(prompt: str, row: Mapping[str, Any], where: str) -> str:
    """The prompt of a row, without a space at its end, which belongs to the choice."""
    try:
        filled = prompt.format_map(row).rstrip(" ")
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{where} does not fit the prompt {prompt!r}: {type(error).__name__} {error}; its fields are "
            f"{', '.join(row)}, each written as {{field}}"
        ) from error
    if not filled.strip():
        raise ValueError(f"{where}: the prompt {prompt!r} is empty")
    return filled


def _answer(wanted: Any, choices: Sequence[str], names: list[Any], where: str) -> int:
    for known in (names, list(choices)):
        if wanted in known:
            return known.index(wanted)
    is_number = isinstance(wanted, int) or (isinstance(wanted, str) and wanted.isdecimal())
    if not is_number or isinstance(wanted, bool) or not 0 <= int(wanted) < len(choices):
        labels = f"one of {', '.join(map(str, names))}, " if names else ""
        raise ValueError(
            f"{where} must be {labels}a choice, or an index from 0 to {len(choices) - 1}, not {wanted!r}"
        )
    return int(wanted)


def _window(
    tokens: list[int], shared: int, window: int, start: Sequence[int], origin: tuple[int, int]
) -> Window:
    if not shared and not start:
        raise ValueError(f"question {origin[0]}: no token stands before the choices")
    scored, room = len(tokens) - shared, window - len(start)
    if scored < 1:
        raise ValueError(f"question {origin[0]}: choice {origin[1]} adds no token to the question")
    if scored > (room if start else room - 1):
        raise ValueError(
            f"question {origin[0]}: choice {origin[1]} has {scored} tokens, and a window {window}"
        )
    return Window([*start, *tokens[-room:]], scored, origin)


def _best(likelihoods: Sequence[float]) -> int:
    return max(range(len(likelihoods)), key=likelihoods.__getitem__)


def _for_each_character(question: Question, likelihoods: Sequence[float]) -> list[float]:
    return [found / len(choice) for found, choice in zip(likelihoods, question.choices, strict=True)]


def _standard_error(share: float, count: int) -> float:
    """Of a share of right answers, estimated from the sample; 0 for a single question."""
    return math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else 0.0

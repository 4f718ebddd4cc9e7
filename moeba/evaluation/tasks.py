"""The two things that are measured: how well texts are predicted, and which of several choices is preferred."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, ClassVar, NamedTuple, Protocol

from .datasets import Rows, texts_of
from .language_modeling import score_documents
from .multiple_choice import question_from, score_questions
from .subject import Subject


class Figures(NamedTuple):
    """Metrics, their standard errors, and counts of what they are over, by name."""

    metrics: Mapping[str, float | None]
    errors: Mapping[str, float]
    counts: Mapping[str, int | None]


Progress = Callable[[int, "int | None"], None]
"""`progress(done, total)`; no total where it is not known beforehand."""


class Task(Protocol):
    """One measurement, the same for every model.

    Attributes:
        name: as the Hub calls it.
        fields: the parts of a row that are read.
        settings: what else the figures depend on, as far as it is the same for all models.
    """

    name: ClassVar[str]

    @property
    def fields(self) -> Mapping[str, Any]: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def measure(self, subject: Subject, progress: Progress) -> Figures: ...

    def start_of(self, subject: Subject) -> list[int]: ...


@dataclass
class LanguageModeling:
    """Sliding-window perplexity; progress is told in bytes of text. See `evaluate` for the fields."""

    rows: Rows
    field: str
    join: str | None
    window: int
    stride: int
    max_tokens: int | None
    bos: bool
    batch_size: int
    name: ClassVar[str] = "text-generation"
    _cut: list[str] | None = dataclass_field(default=None, init=False)

    @property
    def fields(self) -> dict[str, Any]:
        return {"text": self.field, "join": self.join}

    @property
    def settings(self) -> dict[str, Any]:
        return {"window": self.window, "stride": self.stride, "max_tokens": self.max_tokens}

    def start_of(self, subject: Subject) -> list[int]:
        return list(subject.start) if self.bos else []

    def measure(self, subject: Subject, progress: Progress) -> Figures:
        if self.max_tokens is not None and self._cut is None:
            self._cut = list(cut(texts_of(self.rows, self.field, self.join), subject.encode, self.max_tokens))
        total = None
        if self._cut is not None or self.rows.count is not None:
            total = sum(len(text.encode()) for text in self._texts())
        tally = score_documents(
            subject.model,
            subject.encode,
            self._texts(),
            window=self.window,
            stride=self.stride,
            start=self.start_of(subject),
            batch_size=self.batch_size,
            progress=lambda done: progress(done, total),
        )
        return Figures(tally.metrics(), {}, tally.counts())

    def _texts(self) -> Iterable[str]:
        return texts_of(self.rows, self.field, self.join) if self._cut is None else self._cut


@dataclass
class MultipleChoice:
    """Accuracy of the likeliest choice; progress is told in questions. See `evaluate` for the fields."""

    rows: Rows
    prompt: str
    choices: str
    label: str
    window: int
    batch_size: int
    name: ClassVar[str] = "multiple-choice"

    @property
    def fields(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "choices": self.choices, "label": self.label}

    @property
    def settings(self) -> dict[str, Any]:
        return {"window": self.window}

    def start_of(self, subject: Subject) -> list[int]:
        # A choice always has a question before it: nothing is added that the tokenizer does not add itself.
        return list(subject.prefix)

    def measure(self, subject: Subject, progress: Progress) -> Figures:
        questions = (
            question_from(row, number, self.prompt, self.choices, self.label)
            for number, row in enumerate(self.rows)
        )
        metrics, errors, count = score_questions(
            subject.model,
            subject.encode,
            questions,
            window=self.window,
            start=self.start_of(subject),
            batch_size=self.batch_size,
            progress=lambda done: progress(done, self.rows.count),
        )
        return Figures(metrics, errors, {"questions": count})


def cut(texts: Iterable[str], encode: Callable[[str], list[int]], max_tokens: int) -> Iterator[str]:
    """The first texts of up to `max_tokens` tokens in all; the last one is cut between two characters."""
    left = max_tokens
    for text in texts:
        count = len(encode(text))
        if count <= left:
            yield text
            left -= count
        else:
            # The longest beginning of few enough tokens, found by halving.
            low, high = 0, len(text)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if len(encode(text[:middle])) <= left else (low, middle)
            left = 0
            if low:
                yield text[:low]
        if not left:
            return

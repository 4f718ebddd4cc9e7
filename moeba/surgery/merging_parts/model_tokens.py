"""The tokens of each model of a merge: which ones it has a row for, and where they differ from another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ...conversion.certificate.folder_checks import TEXT
from ...conversion.json_files import listing
from ...tokenization.adopt import tokenizer_files
from ..running.sources import Source
from ..running.texts import Texts
from .adapters import AdaptedCheckpoint

_SAMPLE = 20_000  # characters that tokenizers are compared on


@dataclass(frozen=True)
class ModelTokens:
    """
    Attributes:
        called: what a message calls the model.
        rows: of its embedding, padding included.
        folder: where its tokenizer is; tokenizer: None where none loads.
        ends: the ids by which its config ends a text.
    """

    called: str
    rows: int
    folder: Path
    tokenizer: Any
    ends: Any = None

    @classmethod
    def of(cls, called: str, source: Source) -> ModelTokens:
        """An adapter's own tokenizer, if it came with one; else the model's."""
        checkpoint = source.checkpoint
        folder: Path = checkpoint.folder
        if isinstance(checkpoint, AdaptedCheckpoint) and tokenizer_files(checkpoint.adapter):
            folder = checkpoint.adapter
        return cls(
            called, source.config.vocab_size, folder, load_tokenizer(folder), source.config.eos_token_id
        )

    @cached_property
    def ids(self) -> dict[str, int]:
        """Of every token of the tokenizer, with a row in the embedding or without."""
        return {} if self.tokenizer is None else self.tokenizer.get_vocab()

    @cached_property
    def known(self) -> dict[str, int]:
        """Of the tokens that the model has a row for."""
        return {token: place for token, place in self.ids.items() if place < self.rows}

    @cached_property
    def text_of(self) -> dict[int, str]:
        """The known tokens by their ids."""
        return {place: token for token, place in self.known.items()}

    @cached_property
    def named_ends(self) -> str:
        """The tokens that end a text, by their text where there is one."""
        ids = self.ends if isinstance(self.ends, list) else [self.ends]
        return " or ".join(repr(self.text_of.get(place, place)) for place in ids)

    @property
    def last(self) -> int:
        """The largest id that the tokenizer may give; -1 without one."""
        return max(self.ids.values(), default=-1)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; None where it holds none that loads."""
    if not tokenizer_files(folder):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception:  # tokenizer backends raise anything; a folder may well hold none
        return None


def not_compared(models: Mapping[str, ModelTokens]) -> list[str]:
    """A note where a model has no tokenizer to compare."""
    bare = [model.called for model in models.values() if model.tokenizer is None]
    if not bare or len(models) < 2:
        return []
    return [f"tokenizers not compared: {', '.join(bare)} has none that loads"]


def other_ends(models: Mapping[str, ModelTokens]) -> list[str]:
    """A note where a model ends a text by other tokens than the base model, whose are kept."""
    base, *others = models.values()
    told = [f"{model.called} {model.named_ends}" for model in others if model.named_ends != base.named_ends]
    if not told:
        return []
    return [f"eos_token_id: {base.named_ends} as in {base.called}; otherwise in {listing(told)}"]


def difference(first: ModelTokens, second: ModelTokens) -> str:
    """By how much the tokens and rows of `second` differ from those of `first`; empty where they do not."""
    found = []
    if more := second.rows - first.rows:
        found.append(f"{second.rows} rows ({abs(more)} {'more' if more > 0 else 'fewer'})")
    if first.tokenizer is not None and second.tokenizer is not None:
        a, b = first.ids, second.ids
        if tokens := sorted(token for token in a.keys() | b.keys() if a.get(token) != b.get(token)):
            shown = [
                f"{token!r} {b.get(token, 'absent')} ({first.called}: {a.get(token, 'absent')})"
                for token in tokens
            ]
            found.append(f"{len(tokens)} tokens differ: {listing(shown)}")
    return ", ".join(found)


def cut_alike(first: ModelTokens, second: ModelTokens) -> bool:
    """Whether both tokenizers cut a text into the same tokens, but for those that only one was given in addition."""
    text = TEXT + Texts.built_in().texts[0][:_SAMPLE]
    for one, other in ((first, second), (second, first)):
        for added in one.tokenizer.added_tokens_decoder.values():
            if added.content not in other.ids:
                text = text.replace(added.content, "")
    cuts = [
        model.tokenizer.convert_ids_to_tokens(model.tokenizer(text)["input_ids"]) for model in (first, second)
    ]
    return cuts[0] == cuts[1]

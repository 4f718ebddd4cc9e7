"""What a single field of a MoebaConfig may be: numbers that are finite and in their range, and known names.

Whatever is said here of a field holds whether or not other fields let it act.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

from ..library.upstream import ACT2FN

# Beyond these no model was ever built; a list that long, or a table, would fill the memory before anything is said.
MOST_LAYERS, MOST_EXPERTS, MOST = 100_000, 65_536, 2**31 - 1
LARGEST = 3.4e38  # what float32 holds


# A value -> what is wrong with it, continuing a sentence that names field and value; None if nothing is.
Range = Callable[[Any], str | None]


def between(least: int, most: int) -> Range:
    """Whole numbers with bounds that are in them."""

    def problem(value: Any) -> str | None:
        if least <= value <= most:
            return None
        return f"must be at least {least}" if value < least else f"must be at most {most}"

    return problem


def _unless(holds: Callable[[Any], bool], problem: str) -> Range:
    return lambda value: None if holds(value) else problem


COUNT = between(1, MOST)
POSITIVE = _unless(lambda value: value > 0, "must be positive")
NOT_NEGATIVE = _unless(lambda value: value >= 0, "must not be negative")
NOT_ZERO = _unless(lambda value: value != 0, "leaves nothing of the model's function")
FRACTION = _unless(lambda value: 0 <= value < 1, "must be at least 0 and below 1")


def activation(name: Any) -> str | None:
    """The range of names of activations."""
    return (
        None if name in ACT2FN else f"is no activation of transformers (nearest: '{nearest(name, ACT2FN)}')"
    )


# Fields of the library's own base class, whose types it does not check.
INHERITED: dict[str, type] = {
    "id2label": dict, "label2id": dict, "output_hidden_states": bool, "return_dict": bool, "problem_type": str,
    "architectures": list,
}  # fmt: skip


def out_of_range(values: Mapping[str, Any], ranges: Mapping[str, Range]) -> Iterator[str]:
    """Each field of a config whose value alone is wrong, as one sentence.

    Args:
        values: fields by name; those that are None say nothing, those that are missing are not asked for.
        ranges: by name of the field.
    """
    for name, kind in INHERITED.items():
        value = values.get(name)
        if value is not None and not isinstance(value, kind):
            yield f"{name}={value!r} must be of type {kind.__name__}"
    for name, value in values.items():
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            yield f"{name}={value} must be a finite number, also in float32"
    for name, within in ranges.items():
        value = values.get(name)
        if value is not None and (problem := within(value)):
            yield f"{name}={value!r} {problem}"


def nearest(name: str, known: Collection[str]) -> str:
    """The known name most like a mistyped one."""
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]


def token_ids_out_of_range(config: Any) -> Iterator[str]:
    """Special tokens that no embedding has. Others outside the vocabulary just never occur, as in stock models."""
    vocab, pad = config.vocab_size, config.pad_token_id
    # Counted from the end where negative, as in PyTorch; published configs say -1 for none.
    if pad is not None and not -vocab <= pad < vocab:
        yield f"pad_token_id={pad} must be below vocab_size={vocab}, as the padding has an embedding"
    for name in ("bos_token_id", "eos_token_id"):
        ids = getattr(config, name)
        for token in ids if isinstance(ids, list) else [ids]:
            if token is not None and not -1 <= token <= MOST:
                yield f"{name}={ids} is no token id"


def dtype_problems(dtype: Any, torch_dtype: Any) -> Iterator[str]:
    """What is wrong with a model's dtype under its two names."""
    found = []
    for value in (dtype, torch_dtype):
        if value is None:
            continue
        found.append(getattr(torch, str(value).removeprefix("torch."), None))
        if not isinstance(found[-1], torch.dtype) or not found[-1].is_floating_point:
            yield f"dtype={value!r} is no floating-point dtype of torch"
    if len(set(found)) > 1:
        yield f"torch_dtype={torch_dtype} contradicts dtype={dtype}: they are one field"


def is_number(value: Any) -> bool:
    """Whether a value out of a dict is a finite number, also in float32."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST

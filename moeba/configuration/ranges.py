"""What a single field of a MoebaConfig may be: numbers that are finite and in their range, and known names.

Whatever is said here of a field holds whether or not other fields let it act.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

from ..library.upstream import ACT2FN
from .messages import nearest, short

# Beyond these no model was ever built; a list that long, or a table, would fill the memory before anything is said.
MOST_LAYERS, MOST_EXPERTS, MOST_LABELS, MOST = 100_000, 65_536, 10_000_000, 2**31 - 1
LARGEST = 1e18  # float32 still holds its square
SMALLEST = 1e-18  # and its inverse's

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


def _of_some_size(value: Any) -> str | None:
    if 0 < abs(value) < SMALLEST:
        return f"must be of a size of {SMALLEST:g} or more: float32 holds its inverse's square"
    return None


COUNT = between(1, MOST)
# Added to what is divided by, so that the least that there is does no harm.
EPSILON = _unless(lambda value: value > 0, "must be positive")
NOT_NEGATIVE = _unless(lambda value: value >= 0, "must not be negative")
FRACTION = _unless(lambda value: 0 <= value < 1, "must be at least 0 and below 1")


def POSITIVE(value: Any) -> str | None:
    """Above 0, by as much as can be divided by."""
    return EPSILON(value) or _of_some_size(value)


def NOT_ZERO(value: Any) -> str | None:
    """On either side of 0, by as much."""
    return _of_some_size(value) if value else "leaves nothing of the model's function"


def activation(name: Any) -> str | None:
    """The range of names of activations."""
    return (
        None if name in ACT2FN else f"is no activation of transformers (nearest: '{nearest(name, ACT2FN)}')"
    )


# Fields of the library's own base class, whose types it does not check.
INHERITED: dict[str, type] = {
    "id2label": dict, "label2id": dict, "output_hidden_states": bool, "return_dict": bool, "problem_type": str,
    "architectures": list, "is_encoder_decoder": bool, "chunk_size_feed_forward": int, "transformers_version": str,
    "num_labels": int, "per_layer_config": Mapping,
}  # fmt: skip
_LABELS = between(0, MOST_LABELS)
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


def out_of_range(
    values: Mapping[str, Any], ranges: Mapping[str, Range], per_layer: Collection[str]
) -> Iterator[str]:
    """Each field of a config whose value alone is wrong, as one sentence.

    Args:
        values: fields by name; those that are None say nothing, those that are missing are not asked for.
        ranges: by name of the field.
        per_layer: fields that layers may differ in.
    """
    for name, kind in INHERITED.items():
        value = values.get(name)
        if value is not None and not isinstance(value, kind):
            yield f"{name}={short(value)} must be of type {kind.__name__.lower()}"
    if not all(isinstance(name, str) for name in values.get("architectures") or ()):
        yield f"architectures={short(values['architectures'])} must hold names of classes"
    if (problem := values.get("problem_type")) is not None and problem not in PROBLEMS:
        yield f"problem_type={short(problem)} is none of {', '.join(PROBLEMS)}"
    if values.get("is_encoder_decoder"):
        yield "is_encoder_decoder=True: Moeba has no encoder beside the decoder"
    for name, value in values.items():
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            yield f"{name}={short(value)} must be a finite number of at most {LARGEST:g}: float32 holds its square"
    for index, sizes in (values.get("per_layer_config") or {}).items():
        if not isinstance(sizes, Mapping):
            yield f"per_layer_config={short({index: sizes})} must hold a dict of fields for each layer"
            continue
        for name, value in sizes.items():
            if name not in per_layer and value != values.get(name):
                yield f"per_layer_config has {name}={short(value)} for layer {index}: only all layers together have one"
    for name, within in {**ranges, "num_labels": _LABELS}.items():
        value = values.get(name)
        if value is not None and (problem := within(value)):
            yield f"{name}={short(value)} {problem}"


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
    """Whether a value out of a dict is a finite number whose square, and its inverse's, are numbers in float32."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value == 0 or SMALLEST <= abs(value) <= LARGEST

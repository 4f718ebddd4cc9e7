"""Whether several models can share one: the same function around the weights, the same shapes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...configuration.model_facts import rope_of
from ...conversion.config_differences import TRAINING_FIELDS, differences
from ...conversion.json_files import listing
from ..running.sources import Source
from .vocabulary_rows import TABLES

# Fields that leave the function of the weights as it is; and the size of the vocabulary, which has its own rules.
_FREE = TRAINING_FIELDS | {"dtype", "bos_token_id", "eos_token_id", "pad_token_id", "vocab_size"}


def check_agreement(models: Mapping[str, Source], dtype: torch.dtype | None) -> None:
    """Refuse models that differ from the first one in more than the values of their weights and their vocabulary.

    Args:
        models: by the name that a message calls them.
        dtype: what all of them are converted to; None: they must be stored alike.

    Raises:
        ValueError: every difference, by model and by field or tensor.
    """
    (first_name, first), *others = models.items()
    problems = []
    for name, model in others:
        found = _config_differences(first, model) or _tensor_differences(first, model, dtype)
        problems += [f"{name}: {item}" for item in found]
    if problems:
        raise ValueError(
            f"these models are not of one architecture ({first_name} first): {listing(problems)}"
        )


def _config_differences(first: Source, second: Source) -> list[str]:
    rope = first.config.position_embedding_type == "rope" and _is_plain(first) and _is_plain(second)
    free = _FREE | ({"max_position_embeddings"} if rope else set())
    return [
        f"{item.name}={item.second!r} (here: {item.first!r})"
        for item in differences(first.config, second.config)
        if item.name not in free
    ]


def _is_plain(source: Source) -> bool:
    """Whether rotations do not depend on how long a context may become."""
    rope = rope_of(source.config)
    settings = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    return all(item.get("rope_type", "default") in ("default", "linear", "llama3") for item in settings)


def _tensor_differences(first: Source, second: Source, dtype: torch.dtype | None) -> list[str]:
    a, b = first.tensors.tensors, second.tensors.tensors
    found = [f"missing {name}" for name in a if name not in b] + [
        f"unexpected {name}" for name in b if name not in a
    ]
    for name in a.keys() & b.keys():
        rows = 1 if name in TABLES else 0  # these are the vocabulary's affair
        if a[name].shape[rows:] != b[name].shape[rows:]:
            found.append(f"{name} has shape {list(b[name].shape)} (here: {list(a[name].shape)})")
        elif a[name].dtype != b[name].dtype and dtype is None:
            found.append(f"{name} is stored as {b[name].dtype} (here: {a[name].dtype}): say dtype")
    return sorted(found)

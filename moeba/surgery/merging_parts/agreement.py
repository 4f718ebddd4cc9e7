"""Whether several models can share one: the same tokens, the same function around the weights, the same shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ...configuration.model_facts import rope_of
from ...conversion.certificate.proof import TEXT
from ...conversion.config_differences import TRAINING_FIELDS, differences
from ...conversion.json_files import listing
from ...tokenization.adopt import tokenizer_files
from ..running.sources import Source
from ..running.texts import Texts
from .adapters import AdaptedCheckpoint

# Fields that leave the function of the weights as it is.
_FREE = TRAINING_FIELDS | {"dtype", "bos_token_id", "eos_token_id", "pad_token_id"}
_SAMPLE = 20_000  # characters that tokenizers are compared on


def check_agreement(models: Mapping[str, Source], dtype: torch.dtype | None) -> list[str]:
    """Refuse models that differ from the first one in more than the values of their weights.

    Args:
        models: by the name that a message calls them.
        dtype: what all of them are converted to; None: they must be stored alike.

    Returns:
        What could not be compared.

    Raises:
        ValueError: every difference, by model and by field, token or tensor.
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
    return _check_tokenizers(models)


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
        if a[name].shape != b[name].shape:
            found.append(f"{name} has shape {list(b[name].shape)} (here: {list(a[name].shape)})")
        elif a[name].dtype != b[name].dtype and dtype is None:
            found.append(f"{name} is stored as {b[name].dtype} (here: {a[name].dtype}): say dtype")
    return sorted(found)


def _check_tokenizers(models: Mapping[str, Source]) -> list[str]:
    """Refuse models that read a text as other tokens."""
    loaded = {name: _load_tokenizer(model) for name, model in models.items()}
    bare = [name for name, tokenizer in loaded.items() if tokenizer is None]
    (first_name, first), *others = [item for item in loaded.items() if item[1] is not None] or [("", None)]
    problems = []
    text = TEXT + Texts.built_in().texts[0][:_SAMPLE]
    for name, tokenizer in others:
        a, b = first.get_vocab(), tokenizer.get_vocab()
        tokens = sorted(token for token in a.keys() | b.keys() if a.get(token) != b.get(token))
        if tokens:
            shown = [
                f"{token!r} {b.get(token, 'absent')} ({first_name}: {a.get(token, 'absent')})"
                for token in tokens
            ]
            problems.append(f"{name}: {len(tokens)} tokens differ: {listing(shown)}")
        elif first(text)["input_ids"] != tokenizer(text)["input_ids"]:
            problems.append(f"{name}: the same tokens, but a text is cut into others than by {first_name}")
    if problems:
        raise ValueError(f"the tokenizers differ: {'; '.join(problems)}")
    return (
        [f"tokenizers not compared: {', '.join(bare)} has none that loads"]
        if bare and len(models) > 1
        else []
    )


def _load_tokenizer(source: Source) -> Any:
    """An adapter's own, if it came with one; the model's; or None."""
    checkpoint = source.checkpoint
    folder: Path = checkpoint.folder
    if isinstance(checkpoint, AdaptedCheckpoint) and tokenizer_files(checkpoint.adapter):
        folder = checkpoint.adapter
    if not tokenizer_files(folder):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception:  # tokenizer backends raise anything; a folder may well hold none
        return None

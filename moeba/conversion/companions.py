"""The files beside the weights, checked when an operation begins: what is wrong with them is the source's fault then.

Found later, it would be said of a folder in the making, after hours of copying, or only by the tool that loads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from tokenizers import Tokenizer

from .json_files import listing, parse_json, read_json
from .provenance import read_history
from .weight_files import PICKLE_INDEX, SAFE_INDEX

_OBJECTS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZER = "tokenizer.json"


def check_companions(folder: Path, vocab_size: int | None, records: Sequence[str] = ()) -> None:
    """Refuse a folder whose tokenizer, generation settings or card cannot be read, or do not fit the model.

    Args:
        vocab_size: rows of the embedding, where they are known.
        records: further JSON files that the operation reads, if they are there.

    Raises:
        ValueError: names each file, and what is wrong with it.
    """
    problems = [*_unreadable(folder, records)]
    if problems:
        raise ValueError(listing(problems))
    ids = _token_ids(folder)
    if vocab_size is not None and ids and max(ids) >= vocab_size:
        beyond = sum(token >= vocab_size for token in ids)
        raise ValueError(
            f"the tokenizer of {folder} has {beyond} tokens beyond the embedding (ids up to {max(ids)}, "
            f"vocab_size={vocab_size}): text with them cannot be read by the model. Load both with transformers, call "
            "model.resize_token_embeddings(len(tokenizer)) and save them, or take the tokens out."
        )


def _unreadable(folder: Path, records: Sequence[str]) -> Iterator[str]:
    for name in (*_OBJECTS, *records):
        path = folder / name
        if path.is_file():
            try:
                read_json(path)
            except ValueError as error:
                yield str(error)
    for path in (folder / SAFE_INDEX, folder / PICKLE_INDEX):
        if path.is_file() and not isinstance(read_json(path).get("metadata"), dict):
            yield f'{path} has no metadata, without which transformers does not load: add "metadata": {{}}'
    try:
        read_history(folder)
    except ValueError as error:
        yield str(error)
    if (path := folder / _TOKENIZER).is_file():
        try:
            parse_json(path.read_bytes(), str(path))
            Tokenizer.from_file(str(path))
        except ValueError as error:
            yield str(error)
        except Exception as error:  # the Rust library raises nothing narrower
            yield f"{path} is no tokenizer: {' '.join(str(error).split())}"
    if (path := folder / "README.md").is_file():
        try:
            ModelCard.load(path, ignore_metadata_errors=True)
        except Exception as error:  # whatever its metadata provokes
            yield f"{path} has metadata that is no YAML mapping: {' '.join(str(error).split())}"


def _token_ids(folder: Path) -> set[int]:
    """Every id that the folder's tokenizer can give, as far as JSON files say."""
    found: set[Any] = set()
    if (path := folder / _TOKENIZER).is_file():
        found.update(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values())
    elif (path := folder / "vocab.json").is_file():
        found.update(_json(path).values())
    if (path := folder / "added_tokens.json").is_file():
        found.update(_json(path).values())
    if (path := folder / "tokenizer_config.json").is_file():
        added = _json(path).get("added_tokens_decoder")
        found.update(int(token) for token in added if str(token).isdigit()) if isinstance(
            added, dict
        ) else None
    return {token for token in found if isinstance(token, int)}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}

"""Folders as transformers' Auto classes load them, checked first: the library builds whatever a config.json asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from .checkpoint import check_loadable


def load_stock(auto_class: Any, folder: Path, **options: Any) -> Any:
    """`auto_class.from_pretrained(folder, **options)`.

    Raises:
        ValueError: the folder's sizes are not those of its weights, or the library cannot make anything of its files.
        OSError, ImportError: as the library says them.
    """
    check_loadable(folder)
    try:
        return auto_class.from_pretrained(folder, **options)
    except (OSError, ImportError):  # said well by the library
        raise
    except Exception as error:  # whatever a malformed file provokes there
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{folder} is not loaded by transformers' {auto_class.__name__}: {reason}"
        ) from error


def load_tokenizer(folder: Path, **options: Any) -> Any:
    """The folder's tokenizer, tried on a text: what its settings say acts only then.

    Raises:
        ValueError: there is none that works.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        tokenizer("a")
    except Exception as error:  # tokenizer backends raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{folder} has no tokenizer that loads: {reason}") from error
    return tokenizer

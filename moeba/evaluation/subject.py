"""The model under evaluation: any that the Auto classes load, with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ..conversion.checkpoint import listing
from ..conversion.stock_loading import load_stock, load_tokenizer
from .scoring import check_causal

DTYPES = ("auto", "float32", "bfloat16", "float16")
LONGEST = 2048  # tokens of a window, unless a longer one is asked for


@dataclass(frozen=True)
class Subject:
    """A causal language model in memory.

    Attributes:
        prefix: what the tokenizer itself puts before every text, such as a BOS token.
        start: the same, or where it puts nothing, its BOS or else EOS token; empty if it has neither.
    """

    name: str
    model: Any
    tokenizer: Any
    vocab_size: int  # tokens that the model embeds
    prefix: Sequence[int]
    start: Sequence[int]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text alone, with nothing put before or behind it.

        Raises:
            ValueError: the tokenizer knows tokens that the model does not.
        """
        tokens = _tokens(self.tokenizer, text)
        if tokens and max(tokens) >= self.vocab_size:
            raise ValueError(
                f"{self.name}: its tokenizer makes token {max(tokens)} of this text, but the model embeds only "
                f"{self.vocab_size}: the two do not belong together"
            )
        return tokens


def load_subject(
    name: str, folder: Path, dtype: str = "auto", device: str | None = None, trust_remote_code: bool = False
) -> Subject:
    """Load a model and its tokenizer.

    Args:
        name: how messages call it.
        dtype: one of `DTYPES`; `auto` is the stored one.
        device: as torch names it; default the first GPU, or the CPU where there is none.

    Raises:
        ValueError: it is no causal language model, has no tokenizer, or its files leave weights without a value.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    try:
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    model, loading = load_stock(
        AutoModelForCausalLM,
        folder,
        dtype=kind,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    # The library fills such weights with random values, and only warns.
    if unfilled := [*loading["missing_keys"], *map(str, loading["mismatched_keys"])]:
        raise ValueError(f"{name} is no complete causal language model, it lacks {listing(sorted(unfilled))}")
    model.to(_device(device))
    vocab_size = model.get_input_embeddings().weight.shape[0]
    check_causal(model, vocab_size)
    prefix = _prefix(tokenizer)
    fallback = next(
        (token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), None
    )
    start = prefix or ([] if fallback is None else [fallback])
    return Subject(name, model, tokenizer, vocab_size, prefix, start)


def longest_input(folder: Path, trust_remote_code: bool = False) -> int | None:
    """Tokens that a model was made for, as its config says; None where it says nothing."""
    config = load_stock(AutoConfig, folder, trust_remote_code=trust_remote_code)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _device(name: str | None) -> torch.device:
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device={name!r}: {' '.join(str(error).split())}") from error


def _tokens(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    # Not verbose: it would warn that a text is longer than the model's input, which is then cut into windows.
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


def _prefix(tokenizer: Any) -> list[int]:
    """What stands before the tokens of a text where special tokens are added."""
    bare, full = _tokens(tokenizer, "a"), _tokens(tokenizer, "a", special=True)
    places = (i for i in range(len(full)) if bare and full[i : i + len(bare)] == bare)
    return full[: next(places, 0)]

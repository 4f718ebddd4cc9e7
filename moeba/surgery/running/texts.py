"""Calibration text: what models are run on to find routers, to judge experts and to measure what was lost."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...conversion.threads import one_thread
from ...modeling import MoebaForCausalLM

MAX_TOKENS = 4096  # of all texts together
WINDOW = 256  # tokens that are read together
# Text that is on every machine, for a measurement where none is given.
_DOCUMENTED = (
    "argparse", "ast", "asyncio", "collections", "concurrent.futures", "configparser", "contextlib", "csv", "datetime",
    "decimal", "doctest", "email.message", "enum", "functools", "heapq", "http.client", "inspect", "json", "logging",
    "optparse", "os", "pathlib", "pickletools", "random", "re", "shutil", "smtplib", "socket", "sqlite3", "statistics",
    "string", "subprocess", "tarfile", "threading", "typing", "unittest", "urllib.request", "zipfile",
)  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """Texts by name, one a domain."""

    names: tuple[str, ...]
    texts: tuple[str, ...]

    @classmethod
    def read(cls, files: Sequence[str | Path]) -> Texts:
        """
        Raises:
            ValueError: a file cannot be read as UTF-8, or holds nothing.
        """
        texts = []
        for file in files:
            try:
                text = Path(file).read_bytes().decode("utf-8")  # lines end as they do on the disk
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"calibration file {file}: {error}") from error
            if not text.strip():
                raise ValueError(f"calibration file {file} is empty: give a file with text.")
            texts.append(text)
        return cls(tuple(Path(file).name for file in files), tuple(texts))

    @classmethod
    def built_in(cls) -> Texts:
        """Docstrings of the running Python's standard library."""
        parts = []
        for name in _DOCUMENTED:
            module = importlib.import_module(name)
            documented = [module, *(getattr(module, item) for item in getattr(module, "__all__", ())[:20])]
            parts += [text for item in documented if (text := inspect.getdoc(item))]
        return cls(("docstrings of Python's standard library",), ("\n\n".join(parts),))

    def digests(self) -> dict[str, str]:
        """SHA-256 of each text by its name, for the record and so that another text is another run."""
        return {
            name: hashlib.sha256(text.encode()).hexdigest()
            for name, text in zip(self.names, self.texts, strict=True)
        }

    def windows(
        self, tokenizer: Any, longest: int, max_tokens: int = MAX_TOKENS
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids `[windows, length]`, and for each window which text it is from, `[windows]`.

        Every text gets the same share of `max_tokens`; what does not fill a window is left out.

        Args:
            longest: what the model can read at once, in tokens.
        """
        share = max_tokens // len(self.texts)
        # A character is at least one token where it matters: more text than that is never needed.
        ids = [
            tokenizer(text[: 16 * share], add_special_tokens=False)["input_ids"][:share]
            for text in self.texts
        ]
        length = max(1, min(WINDOW, longest, *map(len, ids)))
        rows, labels = [], []
        for label, tokens in enumerate(ids):
            for start in range(0, len(tokens) - length + 1, length):
                rows.append(tokens[start : start + length])
                labels.append(label)
        return torch.tensor(rows), torch.tensor(labels)


def random_windows(vocab_size: int, longest: int, tokens: int = 1024) -> torch.Tensor:
    """Token ids of no language `[windows, length]`, where a model comes without a tokenizer."""
    length = min(WINDOW, longest)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (max(1, tokens // length), length), generator=generator)


def observe_feed_forwards(
    model: MoebaForCausalLM,
    ids: torch.Tensor,
    layers: Iterable[int],
    observe: Callable[[int, torch.Tensor], None],
) -> None:
    """Run the model once and hand over what each layer's feed-forward receives: after its norm, before its router.

    With one thread, `observe` too: what is found here decides tensors, which must not hang on the machine's number of
    processors.

    Args:
        ids: `[windows, length]`.
        observe: called as `observe(layer, inputs)` with `[tokens, hidden]` in float32, layer after layer.
    """

    def record(layer: int, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        observe(layer, args[0].detach().float().reshape(-1, args[0].shape[-1]))

    with ExitStack() as hooks, torch.no_grad(), one_thread():
        for layer in layers:
            handle = model.model.layers[layer].mlp.register_forward_pre_hook(partial(record, layer))
            hooks.callback(handle.remove)
        model.model(ids, use_cache=False)

"""A tokenizer that is given the added tokens of others, in memory and in its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ...conversion.json_files import listing
from ...conversion.scratch import scratch
from ...tokenization.adopt import copy_tokenizer, tokenizer_files
from ...tokenization.sentencepiece_model import write_sentencepiece

# What a tokenizer knows of its own loading, and a folder that is published should not.
_OF_LOADING = ("is_local", "local_files_only", "name_or_path")


def with_tokens(folder: Path, tokens: Sequence[Any]) -> Any:
    """The tokenizer of `folder`, with `tokens` after its own, as it loads from the files that `append_tokens` writes.

    Raises:
        ValueError: it does not load again as what it should be.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_tokens(list(tokens))
    with scratch("tokenizer") as copied:
        copy_tokenizer(folder, copied)
        append_tokens(copied, tokenizer, tokens)
        try:
            written = AutoTokenizer.from_pretrained(copied, local_files_only=True)
        except Exception:  # tokenizer backends raise anything
            written = None
    if written is None or written.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"vocab='union': the tokenizer of {folder} does not load with the tokens "
            f"{listing([token.content for token in tokens])} in its files: say vocab: trim."
        )
    return written


def append_tokens(folder: Path, tokenizer: Any, tokens: Sequence[Any]) -> None:
    """Write `tokens` into the tokenizer files in `folder`, under the ids that `tokenizer` has for them.

    Where there is a `tokenizer.json`, all else in the files stays as it is; other formats are saved anew.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        for file in tokenizer_files(folder):
            file.unlink()
        tokenizer.save_pretrained(folder)
        _edit(folder / "tokenizer_config.json", lambda config: [config.pop(key, None) for key in _OF_LOADING])
        return
    ids = tokenizer.get_vocab()
    entries = [
        {
            "id": ids[token.content],
            "content": token.content,
            "single_word": token.single_word,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "normalized": token.normalized,
            "special": token.special,
        }
        for token in tokens
    ]
    _edit(path, lambda content: content["added_tokens"].extend(entries))

    def declare(config: dict[str, Any]) -> None:
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] |= {
                str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
                for entry in entries
            }

    _edit(folder / "tokenizer_config.json", declare)
    _edit(
        folder / "added_tokens.json",
        lambda listed: listed.update({entry["content"]: entry["id"] for entry in entries}),
    )
    write_sentencepiece(folder)


def _edit(path: Path, change: Any) -> None:
    """Change the JSON object in a file, if there is one."""
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""Take over the tokenizer of a model folder: the same files, byte for byte.

A checkpoint that changes its layout keeps its vocabulary, so its tokenizer is copied. Loading it and
saving it again could change it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

TOKENIZER_FILES = (
    "added_tokens.json",
    "bpe.codes",
    "byte_maps.json",
    "chat_template.json",
    "dict.txt",
    "emoji.json",
    "entity_vocab.json",
    "merges.txt",
    "normalizer.json",
    "prophetnet.tokenizer",
    "special_tokens_map.json",
    "target_vocab.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "word_pronunciation.json",
    "word_shape.json",
)
"""Names under which tokenizers are stored, whatever the class that reads them."""

TOKENIZER_PATTERNS = (
    *("*.jinja", "*.model", "*.spm", "*.tiktoken", "tokenizer.model.v*"),
    *("vocab.bpe", "vocab*.json", "vocab*.txt", "additional_chat_templates/*.jinja"),
)
"""The same for names that vary."""

STOCK_CLASS = "PreTrainedTokenizerFast"
"""The one class name of the Rust backend that both transformers 4 and 5 know."""


def tokenizer_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The tokenizer files in `folder`, sorted; chat templates are part of the tokenizer.

    Raises:
        ValueError: `folder` is not a folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"folder is {str(root)!r}, which is not a folder; pass a local model folder.")
    found = {root / name for name in TOKENIZER_FILES}
    for pattern in TOKENIZER_PATTERNS:
        found.update(root.glob(pattern))
    return sorted(path for path in found if path.is_file())


def copy_tokenizer(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> list[Path]:
    """Copy the tokenizer files of `source` into `destination`, made if missing, and return the copies.

    Contents are the same byte for byte; a link, as in a cache of the Hub, becomes the file it points to. A
    source without a tokenizer gives an empty list: not every checkpoint has one.

    Raises:
        ValueError: `source` is not a folder, or `destination` holds tokenizer files that `source` does not:
            the copy would mix two tokenizers.
    """
    origin, target = Path(source), Path(destination)
    files = [path.relative_to(origin) for path in tokenizer_files(origin)]
    target.mkdir(parents=True, exist_ok=True)
    strangers = {path.relative_to(target) for path in tokenizer_files(target)} - set(files)
    if files and strangers:
        raise ValueError(
            f"destination {str(target)!r} already holds {sorted(map(str, strangers))}, which source "
            f"{str(origin)!r} lacks: two tokenizers would be mixed. Remove them or choose another folder."
        )
    return [_copy(origin / file, target / file) for file in files]


def use_stock_names(folder: str | os.PathLike[str]) -> bool:
    """Make the tokenizer that Moeba trained and saved in `folder` readable by transformers 4 as well.

    For native checkpoints that Moeba writes. transformers 5 reads an unknown class as the stock one by
    itself; transformers 4 refuses it, and knows the list of further special tokens by its older name, which 5
    accepts. Returns whether anything was changed: a tokenizer from elsewhere stays as it is.
    """
    path = Path(folder) / "tokenizer_config.json"
    if not path.is_file():
        return False
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") != "MoebaTokenizer":
        return False
    config["tokenizer_class"] = STOCK_CLASS
    if "extra_special_tokens" in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    return True


def _copy(source: Path, destination: Path) -> Path:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)
    return destination

"""Take over the tokenizer of a model folder: the same files, byte for byte.

A checkpoint that changes its layout keeps its vocabulary, so its tokenizer is copied. Loading it and
saving it again could change it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, TokenizersBackend

from .sentencepiece_model import FILE, has_sentencepiece_form, write_sentencepiece

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

_PIECES = """
Afmoe Apertus Arcee Ernie4_5 Ernie4_5_Moe Gemma Gemma2 Gemma3 Granite GraniteSWA GraniteMoe GraniteMoeSWA
GraniteMoeShared InternLM3 IQuestCoder Llama Ministral3 Mistral Mixtral SmolLM3
"""
PIECES_IN_LLAMA_CPP = frozenset(f"{name}ForCausalLM" for name in _PIECES.split())
"""Of these architectures llama.cpp's converter takes `tokenizer.model`, and what is said of spaces. Of others (Qwen3,
Phi3, MiniCPM3) it takes the file alone, and the library puts a space before each text: without it the script refuses.
"""

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
    """Make the tokenizer that Moeba trained and saved in `folder` readable by transformers 4 and llama.cpp as well.

    For native checkpoints that Moeba writes. transformers 5 reads an unknown class as the stock one by
    itself; transformers 4 refuses it, and knows the list of further special tokens by its older name, which 5
    accepts. `tokenizer.model` lies there where llama.cpp's converter reads it rightly, and only there.
    Returns whether anything was changed: a tokenizer from elsewhere stays as it is.
    """
    config = _own_settings(Path(folder))
    if config is None:
        return False
    config["tokenizer_class"] = STOCK_CLASS
    # Classes that transformers builds for a folder's type, Qwen2's for one, would add theirs after the last id.
    config.setdefault("unk_token", None)
    if "extra_special_tokens" in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (Path(folder) / "tokenizer_config.json").write_text(text, encoding="utf-8")
    architectures = _architectures(Path(folder))
    if architectures and has_sentencepiece_form(folder):
        if PIECES_IN_LLAMA_CPP.issuperset(architectures):
            write_sentencepiece(folder)
        else:
            (Path(folder) / FILE).unlink(missing_ok=True)
    return True


def check_stock_reading(folder: str | os.PathLike[str], model_type: str) -> None:
    """Refuse a tokenizer that Moeba trained where stock transformers would cut texts otherwise than it does.

    In folders of some types transformers builds the class that belongs to the type, whatever the files say.

    Raises:
        ValueError: it does so in a folder of `model_type`, and the ids of a text differ.
    """
    if _own_settings(Path(folder)) is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy_tokenizer(folder, scratch)
        use_stock_names(scratch)
        own = TokenizersBackend.from_pretrained(scratch)
        (Path(scratch) / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        stock = AutoTokenizer.from_pretrained(scratch)
        if stock(_SAMPLE).input_ids != own(_SAMPLE).input_ids:
            raise ValueError(
                f"the tokenizer of {folder} has SentencePiece's form, and transformers reads every tokenizer in a "
                f"folder of type {model_type!r} as a {type(stock).__name__}, which cuts texts otherwise: export to "
                'another family, or train it with MoebaTokenizer.train(..., form="byte_level").'
            )


_SAMPLE = "def f(x):\n    return x ** 2024  # don't, na\u00efve \u65e5\u672c\r\n\r\n\t1.5"


def _architectures(folder: Path) -> list[str]:
    path = folder / "config.json"
    return (json.loads(path.read_text(encoding="utf-8")).get("architectures") or []) if path.is_file() else []


def _own_settings(folder: Path) -> dict[str, Any] | None:
    """What tokenizer_config.json says, if Moeba trained the tokenizer."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    return config if config.get("tokenizer_class") == "MoebaTokenizer" else None


def _copy(source: Path, destination: Path) -> Path:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)
    return destination
